"""Decoding by the codes of a cache in int8: as near to exact attention over their values as the modules come."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_model
from tests.runtime.kernel_case import needs_kernels
from vl2.errors import UserError
from vl2.kernels import load_kernels
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, Cache
from vl2.model.int8_cache import Int8Cache
from vl2.model.mask import AttentionMask
from vl2.runtime import PlainRunner, choose_runner
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.fused_passes import FusedLanguage

LATENT = {"qk_rope_head_dim": 16, "v_head_dim": 16, "kv_lora_rank": 32, "n_group": 1, "topk_group": 1}
MODELS = {"tiny": {}, "shared heads": {"num_key_value_heads": 2}, "latent": LATENT}
LENGTHS = (70, 1, 17)
IDS = (5, 9, 11)


def model_of(kind: str, num_layers: int = 2) -> VL2:
    """A model without experts: a router that meets a near tie would hide how near attention comes."""
    size = "small" if kind == "latent" else "tiny"
    return small_model(size, num_hidden_layers=num_layers, first_k_dense_replace=num_layers, **MODELS[kind])


def random_cache(model: VL2) -> Int8Cache:
    """Rows of codes and scales that nothing was computed from, so that every scale differs from its neighbors."""
    generator = torch.Generator().manual_seed(3)
    cache = Int8Cache.empty(model.config.language_config, len(LENGTHS), 80, device=model.device)
    for t in (t for layer in cache.layers for t in layer):
        if t.dtype == torch.int8:
            t.copy_(torch.randint(-127, 128, t.shape, generator=generator))
        else:
            t.copy_(torch.rand(t.shape, generator=generator) * 0.03 + 0.001)
    cache.lengths = list(LENGTHS)
    return cache


def decode_plainly(model: VL2, cache: Cache) -> Tensor:
    states_B1D = model.language.extend(model.language.embed(torch.tensor(IDS)[:, None]), cache)
    return model.language.logits(states_B1D[:, -1])


def attend_in_float64(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    num_shared = q_BHSC.shape[1] // k_BHLC.shape[1]
    q, k, v = (t.double() for t in (q_BHSC, k_BHLC, v_BHLC))
    scores = q @ k.repeat_interleave(num_shared, 1).mT * scale
    visible = mask.dense(q.shape[2], k.shape[2], q.device)
    assert visible is not None
    return (scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v.repeat_interleave(num_shared, 1)).float()


@needs_kernels
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_step_attends_to_what_the_codes_stand_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, model = load_kernels(), model_of(kind, num_layers=1).to(torch.bfloat16)
    assert kernels is not None
    model.language.model.layers[0].mlp.down_proj.weight.zero_()  # the step is attention alone
    cache = random_cache(model)
    rows = [cache.rows(number, number + 1) for number in range(len(LENGTHS))]
    got = FusedLanguage(model.language, kernels).decode(IDS, rows)
    exact_model = copy.deepcopy(model).float()
    with monkeypatch.context() as in_float64:
        in_float64.setattr("vl2.model.attention.attend", attend_in_float64)
        if kind == "latent":
            exact_model.language.model.layers[0].self_attn.form = "naive"
        exact = decode_plainly(exact_model, random_cache(model))
    # States are rounded to bfloat16 a few times between attention and logits; the modules are off by 0.010 at most.
    assert ((got - exact).norm(dim=-1) < 0.012 * exact.norm(dim=-1)).all()
    # A row that reads the scales of its neighbors says something else.
    for t in (t for row in rows for layer in row.layers for t in layer[len(layer) // 2 :]):
        t.copy_(t.roll(1, dims=-2))
    for row, length in zip(rows, LENGTHS, strict=True):
        row.lengths = [length]
    other = FusedLanguage(model.language, kernels).decode(IDS, rows)
    assert (other[0] - exact[0]).norm() > 2**-4 * exact[0].norm()


@needs_kernels
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_a_step_writes_the_codes_that_the_modules_write(kind: str) -> None:
    kernels, model = load_kernels(), model_of(kind, num_layers=1).to(torch.bfloat16)
    assert kernels is not None
    ours, theirs = random_cache(model), random_cache(model)
    FusedLanguage(model.language, kernels).decode(IDS, [ours.rows(n, n + 1) for n in range(len(LENGTHS))])
    decode_plainly(model, theirs)
    for a, b in zip(ours.layers[0], theirs.layers[0], strict=True):
        for row, length in enumerate(LENGTHS):
            assert torch.equal(a[row, ..., :length, :], b[row, ..., :length, :])
            assert torch.equal(a[row, ..., length + 1 :, :], b[row, ..., length + 1 :, :])
            # Products that are added up in another order may be rounded to the neighbor in bfloat16, and so a code.
            new, expected = (t[row, ..., length, :].double() for t in (a, b))
            assert (new - expected).norm() <= 2**-7 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", MODELS)
@torch.inference_mode()
def test_without_kernels_every_type_works_through_dequantized_layers(kind: str, dtype: torch.dtype) -> None:
    model = model_of(kind).to(dtype)
    logits = []
    for form in ("auto", "int8"):
        runner = PlainRunner(model, form)
        pool = runner.cache_pool(1, 30, 30)
        row = pool.take(30)
        assert isinstance(row, Int8Cache) == (form == "int8")
        for first in (3, 13):
            runner.prefill(model.language.embed(torch.arange(first, first + 10).unsqueeze(0)), row)
        logits.append(torch.cat([runner.decode([token], [row], 1) for token in IDS]))
        pool.give_back(row)
    # Codes are off by up to 0.4 % of the largest number of their head.
    assert 0 < (logits[1] - logits[0]).norm() < 0.05 * logits[0].norm()


@torch.inference_mode()
def test_a_runner_without_fused_calls_decodes_by_modules() -> None:
    model = model_of("tiny").to(torch.bfloat16)
    add_lora(model, LoRASpec(targets=("attention",)))
    runner = CpuRunner(model, "int8")
    row = runner.cache_pool(1, 20, 20).take(20)
    runner.prefill(model.language.embed(torch.arange(5, 15).unsqueeze(0)), row)
    plain = PlainRunner(model, "int8")
    other = plain.cache_pool(1, 20, 20).take(20)
    plain.prefill(model.language.embed(torch.arange(5, 15).unsqueeze(0)), other)
    expected = plain.decode([7], [other], 1)
    assert (runner.decode([7], [row], 1) - expected).norm() < 0.03 * expected.norm()


def test_a_runner_is_not_made_for_a_form_that_there_is_not() -> None:
    model = model_of("tiny")
    assert choose_runner(model, cache="int8").cache == "int8"
    assert choose_runner(model).cache == "auto"
    with pytest.raises(UserError, match="cache must be auto or int8, got int2"):
        choose_runner(model, cache="int2")
    with pytest.raises(UserError, match="a cache in int8 is for the CPU only, and the model is to run on meta"):
        choose_runner(model.to("meta"), cache="int8")
