"""Decoding by the kernels: close to the plain way, the same bits in any batch, and never with weights that are gone."""

from __future__ import annotations

import pytest
import torch

from tests.model.configs import small_model
from vl2.infer.generate import decode_plainly
from vl2.infer.language_plan import LanguagePlan, language_plan
from vl2.kernels import load_kernels
from vl2.lora.apply import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, Cache
from vl2.quant.apply import quantize_model
from vl2.quant.scheme import SCHEMES, SchemeName

pytestmark = pytest.mark.skipif(load_kernels() is None, reason="no compiler here, and no kernels were built before")

PROMPTS = (7, 3, 20)  # tokens of each row's prompt
LATENT = {"qk_rope_head_dim": 16, "v_head_dim": 16, "kv_lora_rank": 32, "n_group": 1, "topk_group": 1}
MODELS = {"tiny": {}, "small": LATENT, "base": LATENT}
SCHEMES_AND_NONE: tuple[SchemeName | None, ...] = (None, "int8", "int4")


def model_of(size: str, scheme: SchemeName | None = None) -> VL2:
    model = small_model(size, **MODELS[size]).to(torch.bfloat16)
    if scheme is not None:
        quantize_model(model, SCHEMES[scheme])
    return model


def filled_cache(model: VL2) -> Cache:
    cache = Cache.allocate(model.config.language_config, len(PROMPTS), 40, dtype=model.dtype, device=model.device)
    for row, length in enumerate(PROMPTS):
        ids = torch.randint(5, 100, (1, length), generator=torch.Generator().manual_seed(row))
        place = cache.rows(row, row + 1)
        model.language.extend(model.language.embed(ids), place)
        cache.lengths[row] = place.lengths[0]
    return cache


def plan_of(model: VL2) -> LanguagePlan:
    plan = language_plan(model.language)
    assert plan is not None
    return plan


@pytest.mark.parametrize("scheme", SCHEMES_AND_NONE)
@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_kernels_and_plain_layers_agree(size: str, scheme: SchemeName | None) -> None:
    model = model_of(size, scheme)
    plan, plain, fast = plan_of(model), filled_cache(model), filled_cache(model)
    ids, differences = [5, 9, 11], []
    for _ in range(3):
        expected, got = decode_plainly(model, ids, plain), plan.run(ids, fast)
        differences.append((got - expected).norm(dim=-1) / expected.norm(dim=-1))
        assert plain.lengths == fast.lengths
        ids = expected.argmax(dim=-1).tolist()
    # Both round to bfloat16 at the same places, and add up in different orders. A row whose router met a near tie may
    # differ by more: so the middle one of nine.
    assert torch.cat(differences).median() < 0.03
    for ours, theirs in zip(fast.layers, plain.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a.float() - b.float()).norm() < 0.05 * b.float().norm()


@pytest.mark.parametrize("scheme", SCHEMES_AND_NONE)
@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_a_row_has_the_same_bits_alone_and_in_a_batch(size: str, scheme: SchemeName | None) -> None:
    model = model_of(size, scheme)
    plan, together, alone = plan_of(model), filled_cache(model), filled_cache(model)
    for ids in ([5, 9, 11], [6, 6, 6]):
        joint = plan.run(ids, together)
        for row, token in enumerate(ids):
            cache = alone.rows(row, row + 1)
            assert torch.equal(plan.run([token], cache)[0], joint[row])
            alone.lengths[row] = cache.lengths[0]
    for ours, theirs in zip(together.layers, alone.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@torch.inference_mode()
def test_rows_of_several_caches_are_decoded_like_rows_of_one() -> None:
    model = model_of("tiny")
    plan, joint = plan_of(model), filled_cache(model)
    caches = []
    for row in range(len(PROMPTS)):
        config = model.config.language_config
        cache = Cache.allocate(config, 1, 30 + row, dtype=model.dtype, device=model.device)
        for target, source in zip(cache.layers, joint.layers, strict=True):
            for t, s in zip(target, source, strict=True):
                t[0, ..., :25, :] = s[row, ..., :25, :]
        cache.lengths = [joint.lengths[row]]
        caches.append(cache)
    assert torch.equal(plan.run_rows([5, 9, 11], caches), plan.run([5, 9, 11], joint))
    assert [cache.lengths[0] for cache in caches] == joint.lengths


@torch.inference_mode()
def test_weights_that_were_moved_replaced_or_changed_are_followed() -> None:
    model = model_of("tiny")
    first, cache = plan_of(model), filled_cache(model)
    assert language_plan(model.language) is first
    head = model.language.lm_head
    head.weight.data = head.weight.data * 2
    moved = plan_of(model)
    assert moved is not first
    start = list(cache.lengths)
    doubled = moved.run([5, 9, 11], cache)
    cache.lengths = start
    head.weight.mul_(0.5)
    assert language_plan(model.language) is moved
    torch.testing.assert_close(moved.run([5, 9, 11], cache) * 2, doubled)
    quantize_model(model, SCHEMES["int8"])
    assert plan_of(model) is not moved


@torch.inference_mode()
def test_what_the_kernels_do_not_know_is_left_to_the_plain_way() -> None:
    model = small_model("tiny")
    assert language_plan(model.language) is None, "float32"
    model.to(torch.bfloat16)
    assert language_plan(model.language) is not None
    with torch.enable_grad():
        assert language_plan(model.language) is None
    add_lora(model, LoRASpec(targets=("attention",)))
    assert language_plan(model.language) is None


@torch.inference_mode()
def test_who_follows_the_router_is_not_passed_by() -> None:
    model = model_of("tiny")
    gates = [module.gate for module in model.language.model.layers.modules() if hasattr(module, "gate")]
    handle = gates[0].register_forward_hook(lambda *_: None)
    assert language_plan(model.language) is None
    handle.remove()
    assert language_plan(model.language) is not None
    handle = gates[-1].register_forward_hook(lambda *_: None)  # when answers have been decoded
    assert language_plan(model.language) is None
    handle.remove()


@pytest.mark.parametrize("size", MODELS)
@torch.inference_mode()
def test_an_answer_may_begin_with_nothing_before_it(size: str) -> None:
    model = model_of(size)
    config = model.config.language_config
    caches = [Cache.allocate(config, 1, 4, dtype=model.dtype, device=model.device) for _ in range(2)]
    expected, got = decode_plainly(model, [7], caches[0]), plan_of(model).run([7], caches[1])
    assert (got - expected).norm() < 0.05 * expected.norm()
