"""The encoder's blocks in one call: the bits of the modules, or as near to float32, and theirs where somebody looks."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_config
from tests.runtime.kernel_case import assert_as_near_as_bfloat16, draw
from vl2.kernels import load_kernels
from vl2.kernels.prefill_ops import has_row_products
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, init_weights
from vl2.model.vision import VisionEncoder
from vl2.quant.quantize_model import SCHEMES, quantize_model
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.cpu_modules import counterpart_of
from vl2.runtime.fused_encoders import FusedEncoder

pytestmark = pytest.mark.skipif(not has_row_products(), reason="the pass is for kernels of many rows")


def plain_model() -> VL2:
    """A model whose encoder has hidden widths that tiles take, if not whole lines."""
    config = small_config("tiny", initializer_range=0.2)
    model = VL2(dataclasses.replace(config, vision_config=dataclasses.replace(config.vision_config, mlp_ratio=3.75)))
    init_weights(model, 0)
    return model.eval().to(torch.bfloat16)


def model_of(*, is_quantized: bool = False) -> VL2:
    model = plain_model()
    if is_quantized:
        quantize_model(model, SCHEMES["int8"])
    return model


def by_blocks(encoder: VisionEncoder, x: Tensor) -> Tensor:
    """Return what comes from the blocks, one after another."""
    for block in encoder.blocks:
        x = block(x)
    return x


def patches(encoder: VisionEncoder, tiles: int) -> Tensor:
    return draw(tiles, *encoder.pos_embed.shape[1:], seed=tiles) * 2


def run(encoder: VisionEncoder, x: Tensor) -> Tensor:
    """Return what comes from the call."""
    kernels = load_kernels()
    assert kernels is not None
    out = FusedEncoder(encoder, encoder.blocks, kernels).run(x)
    assert out is not None
    return out


@pytest.mark.parametrize("tiles", [1, 2, 5])
@torch.inference_mode()
def test_with_int8_the_bits_are_those_of_the_modules(tiles: int) -> None:
    encoder = model_of(is_quantized=True).vision
    x = patches(encoder, tiles)
    kept = x.clone()
    assert torch.equal(run(encoder, x), by_blocks(counterpart_of(encoder), x))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("tiles", [1, 3])
@torch.inference_mode()
def test_in_bfloat16_they_are_as_near_to_float32(tiles: int) -> None:
    encoder = plain_model().vision
    exact, plain = copy.deepcopy(encoder).float(), copy.deepcopy(encoder)
    x = patches(encoder, tiles)
    assert_as_near_as_bfloat16(run(encoder, x), by_blocks(plain, x), by_blocks(exact, x.float()))


@pytest.mark.parametrize("is_quantized", [False, True])
@torch.inference_mode()
def test_a_tile_has_the_same_bits_in_any_company_and_on_any_number_of_threads(is_quantized: bool) -> None:
    encoder, before = model_of(is_quantized=is_quantized).vision, torch.get_num_threads()
    x = patches(encoder, 4)
    whole = run(encoder, x)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(run(encoder, x), whole)
            assert torch.equal(run(encoder, x[1:3]), whole[1:3])
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def test_who_follows_a_module_still_does() -> None:
    model, seen = model_of(), []
    side = model.config.vision_config.image_size
    tiles = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    plain = CpuRunner(model).encode(tiles)
    handle = model.vision.blocks[1].register_forward_hook(lambda *_: seen.append(True))
    followed = CpuRunner(model).encode(tiles)
    handle.remove()
    assert seen == [True]
    assert (followed - plain).norm() < 0.05 * plain.norm()


@torch.inference_mode()
def test_what_the_call_does_not_do_is_left_to_the_modules() -> None:
    model = model_of()
    add_lora(model, LoRASpec(targets=("vision",)))
    assert any("LoRALinear" in note for note in CpuRunner(model).notes)
    kernels, quantized = load_kernels(), model_of(is_quantized=True).vision
    assert kernels is not None
    assert FusedEncoder(quantized, quantized.blocks, kernels).run(patches(quantized, 1)[:, :8]) is None
