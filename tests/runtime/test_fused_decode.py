"""Decoding in one call of the kernels: close to the modules, and the same bits in any batch."""

from __future__ import annotations

import pytest
import torch

from tests.model.configs import small_model
from vl2.kernels import load_kernels
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, Cache
from vl2.model.int8_cache import AS_MODEL, CacheForm, allocate_cache
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.fused_passes import FusedLanguage, Unsupported

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no compiler here, and no kernels were built before")

PROMPTS = (7, 3, 20)  # tokens of each row's prompt
LATENT = {"qk_rope_head_dim": 16, "v_head_dim": 16, "kv_lora_rank": 32, "n_group": 1, "topk_group": 1}
YARN = {
    "type": "yarn", "factor": 4, "original_max_position_embeddings": 64, "beta_fast": 32, "beta_slow": 1, "mscale": 1,
    "mscale_all_dim": 1,
}  # fmt: skip
MODELS = {"tiny": {}, "small": LATENT, "base": LATENT}
SCHEMES_AND_NONE: tuple[SchemeName | None, ...] = (None, "int8", "int4")
FORMS: tuple[CacheForm, ...] = ("auto", "int8")


def model_of(size: str, scheme: SchemeName | None = None) -> VL2:
    model = small_model(size, **MODELS[size]).to(torch.bfloat16)
    if scheme is not None:
        quantize_model(model, SCHEMES[scheme])
    return model


def filled_cache(model: VL2, form: CacheForm = AS_MODEL) -> Cache:
    config = model.config.language_config
    cache = allocate_cache(form, config, len(PROMPTS), 40, dtype=model.dtype, device=model.device)
    for row, length in enumerate(PROMPTS):
        ids = torch.randint(5, 100, (1, length), generator=torch.Generator().manual_seed(row))
        place = cache.rows(row, row + 1)
        model.language.extend(model.language.embed(ids), place)
        cache.lengths[row] = place.lengths[0]
    return cache


def fused(model: VL2) -> FusedLanguage:
    kernels = load_kernels()
    assert kernels is not None
    return FusedLanguage(model.language, kernels)


def decode(language: FusedLanguage, token_ids: list[int], cache: Cache) -> torch.Tensor:
    """Append one token to every row of a cache."""
    rows = [cache.rows(number, number + 1) for number in range(len(token_ids))]
    logits_BV = language.decode(token_ids, rows)
    cache.lengths = [row.lengths[0] for row in rows]
    return logits_BV


def decode_plainly(model: VL2, token_ids: list[int], cache: Cache) -> torch.Tensor:
    states_B1D = model.language.extend(model.language.embed(torch.tensor(token_ids)[:, None]), cache)
    return model.language.logits(states_B1D[:, -1])


@pytest.mark.parametrize("scheme", SCHEMES_AND_NONE)
@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_kernels_and_plain_layers_agree(size: str, scheme: SchemeName | None) -> None:
    model = model_of(size, scheme)
    language, plain, fast = fused(model), filled_cache(model), filled_cache(model)
    ids, differences = [5, 9, 11], []
    for _ in range(3):
        expected, got = decode_plainly(model, ids, plain), decode(language, ids, fast)
        differences.append((got - expected).norm(dim=-1) / expected.norm(dim=-1))
        assert plain.lengths == fast.lengths
        ids = expected.argmax(dim=-1).tolist()
    # Both round to bfloat16 at the same places, and add up in different orders. A row whose router met a near tie may
    # differ by more: so the middle one of nine.
    assert torch.cat(differences).median() < 0.03
    for ours, theirs in zip(fast.layers, plain.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", SCHEMES_AND_NONE)
@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch(size: str, scheme: SchemeName | None, form: CacheForm) -> None:
    model = model_of(size, scheme)
    language, together, alone = fused(model), filled_cache(model, form), filled_cache(model, form)
    for ids in ([5, 9, 11], [6, 6, 6]):
        joint = decode(language, ids, together)
        for row, token in enumerate(ids):
            cache = alone.rows(row, row + 1)
            assert torch.equal(decode(language, [token], cache)[0], joint[row])
            alone.lengths[row] = cache.lengths[0]
    for ours, theirs in zip(together.layers, alone.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scheme", SCHEMES_AND_NONE)
@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_tokens_of_one_sequence_have_the_same_bits_together_and_one_by_one(
    size: str, scheme: SchemeName | None, form: CacheForm
) -> None:
    model = model_of(size, scheme)
    language, together, alone = fused(model), filled_cache(model, form), filled_cache(model, form)
    following = {0: [5, 9, 11, 6, 5], 1: [8], 2: [7, 7]}
    rows = [together.rows(row, row + 1) for row in following]
    ids = [token for tokens in following.values() for token in tokens]
    joint = language.decode(ids, [rows[row] for row, tokens in following.items() for _ in tokens])
    assert [row.lengths[0] for row in rows] == [PROMPTS[row] + len(tokens) for row, tokens in following.items()]
    single = []
    for row, tokens in following.items():
        cache = alone.rows(row, row + 1)
        single += [language.decode([token], [cache])[0].clone() for token in tokens]
    assert torch.equal(joint, torch.stack(single))
    for ours, theirs in zip(together.layers, alone.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def test_rows_of_several_caches_are_decoded_like_rows_of_one() -> None:
    model = model_of("tiny")
    language, joint = fused(model), filled_cache(model)
    caches = []
    for row in range(len(PROMPTS)):
        config = model.config.language_config
        cache = Cache.allocate(config, 1, 30 + row, dtype=model.dtype, device=model.device)
        for target, source in zip(cache.layers, joint.layers, strict=True):
            for t, s in zip(target, source, strict=True):
                t[0, ..., :25, :] = s[row, ..., :25, :]
        cache.lengths = [joint.lengths[row]]
        caches.append(cache)
    assert torch.equal(language.decode([5, 9, 11], caches), decode(language, [5, 9, 11], joint))
    assert [cache.lengths[0] for cache in caches] == joint.lengths


@torch.inference_mode()
def test_what_is_written_into_a_weight_is_seen_and_what_takes_its_place_with_a_new_runner() -> None:
    model = model_of("tiny")
    runner, cache = CpuRunner(model), filled_cache(model)
    rows = [cache.rows(number, number + 1) for number in range(len(PROMPTS))]

    def step(runner: CpuRunner) -> torch.Tensor:
        for row, length in zip(rows, PROMPTS, strict=True):
            row.lengths = [length]
        return runner.decode([5, 9, 11], rows, 16)

    first, head = step(runner), model.language.lm_head
    head.weight.mul_(2)
    torch.testing.assert_close(step(runner), first * 2)
    head.weight.data = head.weight.data * 2
    torch.testing.assert_close(step(runner), first * 2)  # as it was when the runner was made, and still in memory
    torch.testing.assert_close(step(CpuRunner(model)), first * 4)


@torch.inference_mode()
def test_what_the_kernels_do_not_know_is_left_to_the_modules() -> None:
    model = model_of("tiny")
    assert not [note for note in CpuRunner(model).notes if note.startswith("decoding")]
    stretched = {**LATENT, "rope_scaling": YARN}
    with pytest.raises(Unsupported, match="attention has a scale of its own"):
        fused(small_model("small", **stretched).to(torch.bfloat16))
    add_lora(model, LoRASpec(targets=("attention",)))
    with pytest.raises(Unsupported, match="a layer is a LoRALinear"):
        fused(model)
    runner = CpuRunner(model)
    assert "decoding goes module by module: a layer is a LoRALinear" in runner.notes
    caches = [
        Cache.allocate(model.config.language_config, 1, 9, dtype=model.dtype, device=model.device) for _ in range(2)
    ]
    torch.testing.assert_close(
        runner.decode([7], caches[:1], 1), decode_plainly(model, [7], caches[1]), atol=0.02, rtol=0.1
    )


@torch.inference_mode()
def test_who_follows_a_module_is_not_passed_by() -> None:
    model = model_of("tiny")
    gate = next(module.gate for module in model.language.model.layers.modules() if hasattr(module, "gate"))
    seen: list[bool] = []
    handle = gate.register_forward_hook(lambda *_: seen.append(True))
    runner = CpuRunner(model)
    assert any("gate has a hook" in note for note in runner.notes)
    cache = Cache.allocate(model.config.language_config, 1, 9, dtype=model.dtype, device=model.device)
    runner.decode([7], [cache], 1)
    assert seen == [True]
    handle.remove()
    assert not any("hook" in note for note in CpuRunner(model).notes)


@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_an_answer_may_begin_with_nothing_before_it(size: str) -> None:
    model = model_of(size)
    config = model.config.language_config
    caches = [Cache.allocate(config, 1, 4, dtype=model.dtype, device=model.device) for _ in range(2)]
    expected, got = decode_plainly(model, [7], caches[0]), decode(fused(model), [7], caches[1])
    assert (got - expected).norm() < 0.05 * expected.norm()
