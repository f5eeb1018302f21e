"""DeepEncoder on the CPU kernels, in one call and module by module: as near to float32 as PyTorch, and always alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runtime.kernel_case import ROW_LEVELS, needs_attention
from vl2.checkpoint.toy_checkpoint import drawn_model, toy_config
from vl2.config import ModelConfig
from vl2.deep_encoder_config import SamConfig
from vl2.kernels import library
from vl2.kernels.prefill_ops import has_tiles
from vl2.lora.attach import add_lora
from vl2.lora.spec import LoRASpec
from vl2.model import VL2, clip, sam
from vl2.model.deep_encoder import DeepEncoder
from vl2.quant.quantize_model import SCHEMES, quantize_model
from vl2.runtime.cpu import CpuRunner
from vl2.runtime.cpu_encoders import CpuSamEncoder
from vl2.runtime.cpu_modules import counterpart_of, with_kernels

needs_tiles = pytest.mark.skipif(not has_tiles(), reason="the pass is for tile registers")
KINDS = ["deepseek-ocr", "deepseek-ocr-2"]


@pytest.fixture(params=ROW_LEVELS)
def _level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, request.param)


def config_of(kind: str) -> ModelConfig:
    """Return a toy configuration whose channels tiles take."""
    values: dict[str, Any] = toy_config(kind).to_dict()
    values["vision_config"]["width"]["sam_vit_b"]["downsample_channels"] = [32, 32]
    return ModelConfig.from_dict(values)


def plain_model(kind: str = "deepseek-ocr") -> VL2:
    return drawn_model(config_of(kind)).to(torch.bfloat16)


def views(count: int, side_px: int) -> Tensor:
    return torch.randn(count, 3, side_px, side_px, generator=torch.Generator().manual_seed(side_px))


def assert_as_near_to_float32(ours: Tensor, plain: Tensor, exact: Tensor) -> None:
    our_error, their_error = (ours.float() - exact).abs(), (plain.float() - exact).abs()
    assert our_error.mean() <= 1.5 * their_error.mean()
    assert our_error.max() <= 2 * their_error.max()


@needs_attention
@pytest.mark.usefixtures("_level")
@pytest.mark.parametrize(("kind", "side_px"), [("deepseek-ocr", 192), ("deepseek-ocr", 320), ("deepseek-ocr-2", 768)])
@torch.inference_mode()
def test_features_are_as_near_to_float32_as_those_of_pytorch(kind: str, side_px: int) -> None:
    model, pixels = plain_model(kind), views(1, side_px)
    exact = copy.deepcopy(model).float().encode_tiles(pixels)
    plain = model.encode_tiles(pixels)
    assert_as_near_to_float32(with_kernels(model).encode_tiles(pixels), plain, exact)  # module by module
    assert_as_near_to_float32(CpuRunner(model).encode(pixels), plain, exact)


@needs_tiles
@pytest.mark.parametrize("kind", KINDS)
def test_the_runner_runs_the_encoder_in_fused_calls_without_a_note(kind: str) -> None:
    runner = CpuRunner(plain_model(kind))
    assert not [note for note in runner.notes if "SAM" in note or "CLIP" in note]
    assert isinstance(runner.model.vision, nn.Module)
    first = runner.model.vision.sam
    assert isinstance(first, CpuSamEncoder)
    assert first.fused is not None


@needs_tiles
@torch.inference_mode()
def test_with_int8_the_bits_of_the_fused_calls_are_those_of_the_modules() -> None:
    model, pixels = plain_model(), views(2, 256)
    quantize_model(model, SCHEMES["int8"])
    in_one_call, by_modules = CpuRunner(model).model.vision, with_kernels(model).vision
    assert isinstance(in_one_call, DeepEncoder)
    assert isinstance(by_modules, DeepEncoder)
    x = by_modules.sam.patch_embed(pixels.to(torch.bfloat16))
    x = x + sam.resize_positions(by_modules.sam.pos_embed, x.shape[1])
    for block in by_modules.sam.blocks:
        x = block(x)
    # The convolutions are in bfloat16 either way, but PyTorch sums them in another order.
    maps = by_modules.sam.net_3(by_modules.sam.net_2(by_modules.sam.neck(x.permute(0, 3, 1, 2))))
    ours = in_one_call.sam(pixels)
    assert (ours.float() - maps.float()).norm() <= 0.02 * maps.float().norm()
    assert torch.equal(in_one_call.clip(ours), by_modules.clip(ours))


@needs_tiles
@pytest.mark.parametrize("is_quantized", [False, True])
@torch.inference_mode()
def test_a_view_has_the_same_bits_beside_others_and_on_any_number_of_threads(is_quantized: bool) -> None:
    model, before = plain_model(), torch.get_num_threads()
    if is_quantized:
        quantize_model(model, SCHEMES["int8"])
    runner, pixels = CpuRunner(model), views(3, 320)
    together = runner.encode(pixels)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(runner.encode(pixels[1:2]), together[1:2])
    finally:
        torch.set_num_threads(before)


@needs_tiles
@torch.inference_mode()
def test_hooks_adapters_and_gradients_get_the_modules() -> None:
    model, pixels, seen = plain_model(), views(1, 256), []
    plain = CpuRunner(model).encode(pixels)
    handles = [
        block.register_forward_hook(lambda *_: seen.append(True))
        for block in (model.vision.sam.blocks[1], model.vision.clip.transformer.layers[0])
    ]
    followed = CpuRunner(model)
    assert any("has a hook" in note for note in followed.notes)
    assert (followed.encode(pixels) - plain).norm() < 0.05 * plain.norm()
    assert seen == [True, True]
    for handle in handles:
        handle.remove()
    add_lora(model, LoRASpec(targets=("vision",)))
    adapted = CpuRunner(model)
    assert any("LoRALinear" in note for note in adapted.notes)
    assert (adapted.encode(pixels) - plain).norm() < 0.05 * plain.norm()  # a new adapter adds nothing
    with torch.inference_mode(False), torch.enable_grad():
        trained = with_kernels(plain_model())
        trained.encode_tiles(views(1, 256).clone()).float().sum().backward()
    assert trained.vision.sam.blocks[0].attn.rel_pos_h.grad is not None


@torch.inference_mode()
def test_float32_stays_with_pytorch() -> None:
    model, pixels = drawn_model(config_of("deepseek-ocr")), views(1, 192)
    assert torch.equal(with_kernels(model).encode_tiles(pixels), model.encode_tiles(pixels))


@needs_attention
@pytest.mark.parametrize("is_global", [False, True])
@torch.inference_mode()
def test_a_block_of_sam_at_full_size(is_global: bool) -> None:
    config = SamConfig(
        width=768,
        layers=1,
        heads=12,
        global_attn_indexes=(),
        downsample_channels=(512, 1024),
        patch_size=16,
        window_size=14,
        neck_channels=256,
        mlp_ratio=4,
        image_size=1024,
    )
    block = drawn(sam.Block(config, is_global=is_global))
    x = torch.randn(1, 40, 40, 768, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = copy.deepcopy(block).float()(x.float())
    assert_as_near_to_float32(counterpart_of(block)(x), block(x), exact)


@needs_attention
@torch.inference_mode()
def test_a_layer_of_clip_at_full_size() -> None:
    config = toy_config().vision_config.second
    layer = drawn(clip.Layer(type(config)(width=1024, layers=1, heads=16, image_size=224, patch_size=14, mlp_ratio=4)))
    x = torch.randn(2, 257, 1024, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    exact = copy.deepcopy(layer).float()(x.float())
    assert_as_near_to_float32(counterpart_of(layer)(x), layer(x), exact)


def drawn(module: nn.Module) -> Any:
    """Return the module in bfloat16 with random weights, norms near 1 and learned distances that matter."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in module.named_parameters():
        draw = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            draw *= parameter.shape[-1] ** -0.5
        else:
            draw = draw * 0.1 + ("norm" in name and name.endswith("weight"))
        parameter.copy_(draw)
    return module.to(torch.bfloat16).eval()
