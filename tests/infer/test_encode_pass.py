"""The encoder's blocks in one call: the bits of the modules, or as near to float32, and theirs where somebody looks."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from tests.infer.kernel_case import assert_as_near_as_bfloat16, draw
from tests.model.configs import small_config
from vl2.infer.encoder_plan import EncoderPlan, encoder_plan
from vl2.infer.prefill_kernels import use_prefill_kernels
from vl2.kernels.prefill import has_tiles
from vl2.lora.apply import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, init_weights, vision
from vl2.model.vision import VisionEncoder
from vl2.quant.apply import quantize_model
from vl2.quant.scheme import SCHEMES

pytestmark = pytest.mark.skipif(not has_tiles(), reason="the pass is for tile registers")


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
    use_prefill_kernels(model)
    return model


def plan_of(encoder: VisionEncoder) -> EncoderPlan:
    plan = encoder_plan(encoder)
    assert plan is not None
    return plan


def patches(encoder: VisionEncoder, tiles: int) -> Tensor:
    return draw(tiles, *encoder.pos_embed.shape[1:], seed=tiles) * 2


def run(encoder: VisionEncoder, x: Tensor) -> Tensor:
    """Return what comes from the call."""
    out = plan_of(encoder).run(x)
    assert out is not None
    return out


@pytest.mark.parametrize("tiles", [1, 2, 5])
@torch.inference_mode()
def test_with_int8_the_bits_are_those_of_the_modules(tiles: int) -> None:
    encoder = model_of(is_quantized=True).vision
    x = patches(encoder, tiles)
    kept = x.clone()
    assert torch.equal(run(encoder, x), vision.run_blocks(encoder, x))
    assert torch.equal(x, kept)


@pytest.mark.parametrize("tiles", [1, 3])
@torch.inference_mode()
def test_in_bfloat16_they_are_as_near_to_float32(tiles: int) -> None:
    encoder = plain_model().vision
    exact, plain = copy.deepcopy(encoder).float(), copy.deepcopy(encoder)
    x = patches(encoder, tiles)
    assert_as_near_as_bfloat16(run(encoder, x), vision.run_blocks(plain, x), vision.run_blocks(exact, x.float()))


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
def test_who_follows_a_module_still_does_and_moved_weights_are_followed() -> None:
    encoder, seen = model_of().vision, []
    x = patches(encoder, 2)
    plain, first = encoder.run_blocks(encoder, x), plan_of(encoder)
    handle = encoder.blocks[1].mlp.register_forward_hook(lambda *_: seen.append(True))
    encoder.run_blocks(encoder, x)
    handle.remove()
    assert seen == [True]
    assert torch.equal(encoder.run_blocks(encoder, x), plain)
    assert seen == [True]
    assert plan_of(encoder) is first
    weight = encoder.blocks[0].mlp.fc2.weight
    weight.data = weight.data * 2
    assert plan_of(encoder) is not first
    assert not torch.equal(encoder.run_blocks(encoder, x), plain)


@torch.inference_mode()
def test_what_the_call_does_not_do_is_left_to_the_modules() -> None:
    model = model_of()
    add_lora(model, LoRASpec(targets=("vision",)))
    assert encoder_plan(model.vision) is None
    x = patches(model.vision, 1)
    assert torch.equal(model.vision.run_blocks(model.vision, x), vision.run_blocks(model.vision, x))
    quantized = model_of(is_quantized=True).vision
    assert plan_of(quantized).run(patches(quantized, 1)[:, :8]) is None
