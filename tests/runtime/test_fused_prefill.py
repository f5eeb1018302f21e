"""A chunk of a prompt in one call: near what the modules make of it, and theirs wherever somebody looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_model
from vl2.kernels import load_kernels
from vl2.kernels.prefill_ops import has_row_products
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, Cache
from vl2.model.int8_cache import AS_MODEL, CacheForm, Int8Cache, allocate_cache, dequantize_rows
from vl2.quant import quantized_matmul
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model
from vl2.runtime import PlainRunner
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.cpu_modules import with_kernels
from vl2.runtime.fused_passes import FusedLanguage

pytestmark = pytest.mark.skipif(not has_row_products(), reason="the fused prefill is for kernels of many rows")

# How near: of int4 the call rounds code times scale to bfloat16, where modules meet the codes themselves up to 64 rows.
NEAR: dict[SchemeName | None, float] = {None: 0.015, "int8": 0.015, "int4": 0.03}
# Like tiny's in all but size; one whose heads share keys and whose router has a bias and weighs by sigmoids; and one
# with latent attention, whose latents and rotary key together are an odd multiple of 16.
SHARED = {
    "num_key_value_heads": 2,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
}
WIDTHS = {"intermediate_size": 96, "moe_intermediate_size": 32}  # whole lines
LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32}
MODELS = {
    "tiny": ("tiny", WIDTHS),
    "shared": ("tiny", {**WIDTHS, **SHARED, "num_hidden_layers": 3}),
    "latent": ("small", {**WIDTHS, **LATENT, "num_hidden_layers": 3}),
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def few_rows_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with tile registers, so that short chunks of an int4 model need not be left to the modules."""
    monkeypatch.setattr(quantized_matmul, "FEW_FOR_CODES", 1)


def model_of(kind: str = "tiny", scheme: SchemeName | None = None) -> VL2:
    size, language = MODELS[kind]
    model = small_model(size, **language).to(torch.bfloat16)
    if scheme is not None:
        quantize_model(model, SCHEMES[scheme])
    return with_kernels(model)


def embedded(model: VL2, count: int, seed: int = 0) -> Tensor:
    generator, size = torch.Generator().manual_seed(seed), model.config.language_config.vocab_size
    ids = torch.randint(0, size, (1, count), generator=generator)
    return model.language.embed(ids)


def new_cache(model: VL2, capacity: int = 200, form: CacheForm = AS_MODEL) -> Cache:
    config = model.config.language_config
    return allocate_cache(form, config, 1, capacity, dtype=model.dtype, device=model.device)


def fused(model: VL2) -> FusedLanguage:
    kernels = load_kernels()
    assert kernels is not None
    return FusedLanguage(model.language, kernels)


def read(model: VL2, count: int, cache: Cache, seed: int = 0) -> Tensor:
    """Return the last state, which must have come from the call."""
    state = fused(model).prefill(embedded(model, count, seed), cache)
    assert state is not None
    return state


def read_by_modules(model: VL2, count: int, cache: Cache, seed: int = 0) -> Tensor:
    return PlainRunner(model).prefill(embedded(model, count, seed), cache)


def difference(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the difference of each row, of the length of what it should be."""
    return (ours.float() - theirs.float()).norm(dim=-1) / theirs.float().norm(dim=-1)


def halves(held: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Return the codes and the scales of a layer of a cache of int8."""
    return held[: len(held) // 2], held[len(held) // 2 :]


@pytest.mark.parametrize("scheme", NEAR)
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_pass_is_near_what_the_modules_make_of_it(kind: str, scheme: SchemeName | None) -> None:
    model, states = model_of(kind, scheme), []
    for count in (9, 16, 17, 40, 100):
        ours, plain = new_cache(model), new_cache(model)
        for step, rows in enumerate((count, 30)):  # the second goes on where the first ends
            got, expected = read(model, rows, ours, step), read_by_modules(model, rows, plain, step)
            assert got.shape == expected.shape
            assert ours.lengths == plain.lengths
            states.append(difference(got, expected).flatten())
            for mine, theirs in zip(ours.layers, plain.layers, strict=True):
                places = [difference(a, b)[..., : ours.lengths[0]] for a, b in zip(mine, theirs, strict=True)]
                assert torch.stack(places).median() < NEAR[scheme]
            # What goes into the first router is the same to the bit. A router that meets a near tie parts both there,
            # for that position and a little for those that look back on it: so the middle one of all.
            same = (torch.equal(a, b) for a, b in zip(ours.layers[0], plain.layers[0], strict=True))
            assert all(same) or scheme == "int4"
    assert torch.cat(states).median() < NEAR[scheme]


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_first_pass_puts_the_codes_of_what_it_computed_into_a_cache_of_int8(kind: str) -> None:
    model = model_of(kind)
    plain, cache = new_cache(model), new_cache(model, form="int8")
    assert isinstance(cache, Int8Cache)
    # With nothing before it, a pass attends to exactly what it would without codes.
    assert torch.equal(read(model, 40, cache), read(model, 40, plain))
    assert cache.lengths == [40]
    for held, exact in zip(cache.layers, plain.layers, strict=True):
        for codes, scales, x in zip(*halves(held), exact, strict=True):
            errors = (dequantize_rows(codes, scales, cache.widths) - x.float()).abs().split(cache.widths, dim=-1)
            for error, part in zip(errors, x.float().abs().split(cache.widths, dim=-1), strict=True):
                # Half a step, and float32's rounding of the factor, the scale and up to 127 steps.
                assert (error <= part.amax(dim=-1, keepdim=True) / 254 * (1 + 3 * 127 * 2**-23)).all()
            assert not codes[..., 40:, :].any()


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_later_pass_attends_to_the_codes_of_earlier_ones(kind: str) -> None:
    model = model_of(kind)
    cache, plain, by_modules = (new_cache(model, form=form) for form in ("int8", "auto", "int8"))
    for each in (cache, plain, by_modules):
        read(model, 60, each)
    # A plain cache that holds what the codes stand for, in bfloat16.
    assert isinstance(cache, Int8Cache)
    for held, exact in zip(cache.layers, plain.layers, strict=True):
        for codes, scales, x in zip(*halves(held), exact, strict=True):
            x.copy_(dequantize_rows(codes, scales, cache.widths))
    got = read(model, 30, cache, 1)
    assert torch.equal(got, read(model, 30, plain, 1))
    assert difference(got, read_by_modules(model, 30, by_modules, 1)) < NEAR[None]


@pytest.mark.parametrize("form", ["auto", "int8"])
@pytest.mark.parametrize(("kind", "scheme"), [*(("tiny", scheme) for scheme in NEAR), ("latent", None)])
@torch.inference_mode()
def test_the_bits_are_the_same_on_any_number_of_threads(kind: str, scheme: SchemeName | None, form: CacheForm) -> None:
    model, results = model_of(kind, scheme), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        cache = new_cache(model, form=form)
        results.append([read(model, 70, cache), read(model, 12, cache), *(t for layer in cache.layers for t in layer)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_nothing_but_the_new_positions_is_written_and_the_embeddings_stay(kind: str) -> None:
    model, cache = model_of(kind), new_cache(model_of(kind), 50)
    for layer in cache.layers:
        for t in layer:
            t.fill_(7)
    x = embedded(model, 20)
    kept, cache.lengths = x.clone(), [5]
    language = fused(model)
    assert language.prefill(x, cache) is not None
    assert torch.equal(x, kept)
    for layer in cache.layers:
        for t in layer:
            assert (t[..., :5, :] == 7).all()
            assert (t[..., 25:, :] == 7).all()
            assert not (t[..., 5:25, :] == 7).all(dim=-1).any()
    cache.lengths = [31]
    with pytest.raises(AssertionError, match="the cache holds 50 positions, 51 are needed"):
        language.prefill(x, cache)


@torch.inference_mode()
def test_who_follows_a_module_still_does() -> None:
    model, seen = model_of(), []
    plain = CpuRunner(model).prefill(embedded(model, 30), new_cache(model))
    for layer in (model.language.model.layers[1], model.language.model.layers[0].self_attn):
        handle = layer.register_forward_hook(lambda *_: seen.append(True))
        followed = CpuRunner(model).prefill(embedded(model, 30), new_cache(model))
        handle.remove()
        assert seen.pop()
        assert not seen
        assert (followed - plain).norm() < 0.1 * plain.norm()


@torch.inference_mode()
def test_what_the_call_does_not_do_is_left_to_the_modules() -> None:
    narrow = small_model("base", qk_rope_head_dim=16, v_head_dim=16, kv_lora_rank=32, n_group=1, topk_group=1)
    narrow.to(torch.bfloat16)  # 72 wide, no whole lines
    for model, count in ((narrow, 30), (model_of("tiny", "int4"), 8), (model_of("tiny", "int8"), 8), (model_of(), 1)):
        assert fused(model).prefill(embedded(model, count), new_cache(model)) is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized_matmul, "FEW_FOR_CODES", 8)
        patch.setattr(quantized_matmul, "FEW_FOR_CODES_WITH_TILES", 8)
        model = model_of("tiny", "int4")
        language = model.config.language_config
        assert language.n_routed_experts is not None
        assert language.num_experts_per_tok is not None
        rows = 8 * language.n_routed_experts // language.num_experts_per_tok  # eight for each expert
        assert fused(model).prefill(embedded(model, rows), new_cache(model)) is None
        assert fused(model).prefill(embedded(model, rows + 1), new_cache(model)) is not None
    model = model_of()
    add_lora(model, LoRASpec(targets=("attention",)))
    runner = CpuRunner(model)
    state = runner.prefill(embedded(model, 30), new_cache(model))
    assert torch.equal(state, read_by_modules(runner.model, 30, new_cache(model)))
    assert any("LoRALinear" in note for note in runner.notes)
