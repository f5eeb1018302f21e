"""Frozen weights in 4 and 8 bits: how near they are, what is kept, and that gradients are those of the same weights."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.lora.adapted import EVERYTHING, adapted_model, base_model, batch_of, logits
from tests.reference import SIZES
from vl2.errors import UserError
from vl2.lora.attach import lora_layers, merge_lora
from vl2.lora.peft_files import save_adapter
from vl2.lora.spec import LoRASpec
from vl2.model import VL2
from vl2.model.moe import Experts
from vl2.quant.base_modules import (
    NF4_VALUES,
    BaseKind,
    Int8Weight,
    NF4Weight,
    QuantizedBaseExperts,
    QuantizedBaseLinear,
)
from vl2.quant.quantize_model import quantize_base

KINDS: tuple[BaseKind, ...] = ("nf4", "int8")


def base_bytes(model: nn.Module) -> int:
    """Return how much memory the weights of a model take, quantized or not."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(64, 128), (7, 33), (3, 10, 48), (1, 1), (300, 1000)])
@pytest.mark.parametrize(("kind", "worst"), [(NF4Weight, 0.1), (Int8Weight, 0.01)])
def test_a_weight_comes_back_near_and_in_its_shape(kind: Any, worst: float, shape: tuple[int, ...]) -> None:
    weight = normal(*shape)
    held = kind(weight)
    again = held.dequantize().view(held.shape)
    assert again.shape == weight.shape
    assert (again - weight).norm() <= worst * weight.norm()


def test_every_one_of_the_sixteen_values_comes_back_as_itself() -> None:
    weight = torch.tensor(NF4_VALUES).repeat(64) * 0.5
    assert torch.allclose(NF4Weight(weight).dequantize(), weight, atol=1e-7)


def test_four_bits_take_little_more_than_four_bits() -> None:
    held = NF4Weight(normal(1024, 1024))
    bits = 8 * base_bytes(held) / 1024**2
    assert 4.12 < bits < 4.13


def test_a_stretch_is_the_same_stretch_of_the_whole() -> None:
    weight = normal(40, 5, 64)
    for held in (NF4Weight(weight), Int8Weight(weight)):
        assert torch.equal(held.dequantize(3 * 320, 7 * 320), held.dequantize()[3 * 320 : 7 * 320])


def test_the_sixteen_values_lie_on_the_device_of_the_weight_and_in_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    held = NF4Weight(normal(40, 64))
    expected = held.dequantize()
    assert held.state_dict().keys() == {"codes", "scale_codes", "scale_scales", "scale_mean"}

    def refuse(*values: Any, **options: Any) -> Tensor:
        raise AssertionError("a tensor was made from the host's numbers")

    monkeypatch.setattr(torch, "tensor", refuse)
    assert torch.equal(held.dequantize(), expected)
    moved = held.to("meta")
    assert moved.values.device.type == "meta"
    assert moved.dequantize().device.type == "meta"


def test_a_large_weight_is_made_in_pieces_that_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(48, 512)
    expected = [kind(weight).dequantize() for kind in (NF4Weight, Int8Weight)]
    monkeypatch.setattr("vl2.quant.base_modules.CHUNK", 1024)
    held = [kind(weight) for kind in (NF4Weight, Int8Weight)]
    assert all(torch.equal(a.dequantize(), b) for a, b in zip(held, expected, strict=True))


def dequantized(model: VL2) -> VL2:
    """Put plain layers of the same weights in place of the quantized ones."""
    for name, module in list(model.named_modules()):
        parent, _, leaf = name.rpartition(".")
        if isinstance(module, QuantizedBaseLinear):
            plain: nn.Module = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            weights: dict[str, Any] = {"weight": module.weight}
            if module.bias is not None:
                plain.get_parameter("bias").data = module.bias.data
        elif isinstance(module, QuantizedBaseExperts):
            E, two_F, D = module.gate_up_proj.shape
            plain, weights = (
                Experts(E, D, two_F // 2),
                {"gate_up_proj": module.gate_up_proj, "down_proj": module.down_proj},
            )
        else:
            continue
        for parameter, held in weights.items():
            plain.get_parameter(parameter).data = held.dequantize().view(held.shape)
        setattr(model.get_submodule(parent), leaf, plain.requires_grad_(False))
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_exactly_those_of_the_dequantized_weights(
    size: str, kind: BaseKind, dtype: torch.dtype
) -> None:
    held, plain = (adapted_model(size).to(dtype) for _ in range(2))
    assert quantize_base(held, kind) > 10
    quantize_base(plain, kind)
    dequantized(plain)
    batch = batch_of(size, "text", "tiled")
    outputs = []
    for model in (held, plain):
        out = model.train()(batch).logits
        out.square().mean().backward()
        outputs.append(out)
    assert torch.equal(*outputs)
    theirs = dict(plain.named_parameters())
    trained = [(name, p) for name, p in held.named_parameters() if p.requires_grad]
    assert trained
    assert all(p.grad is not None and torch.equal(p.grad, theirs[name].grad) for name, p in trained)


@pytest.mark.parametrize(("kind", "part"), [("nf4", 0.17), ("int8", 0.30)])
def test_the_quantized_layers_take_their_part_of_the_memory(kind: BaseKind, part: float) -> None:
    layers = [adapted_model("base").language.model.layers for _ in range(2)]
    wrapped = nn.ModuleDict({"language": nn.ModuleDict({"model": nn.ModuleDict({"layers": layers[1]})})})
    quantize_base(wrapped, kind)
    held = [sum(base_bytes(layer.base_layer) for _, layer in lora_layers(one)) for one in (layers[0], layers[1])]
    assert held[1] < part * held[0]


def test_a_pass_keeps_no_weight_in_full_for_its_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted_model("base", LoRASpec(rank=4))
    quantize_base(model, "nf4")
    made: list[weakref.ref[Any]] = []
    original = NF4Weight.dequantize

    def watched(self: NF4Weight, start: int = 0, stop: int | None = None) -> Tensor:
        out = original(self, start, stop)
        made.append(weakref.ref(out.untyped_storage()))
        return out

    monkeypatch.setattr(NF4Weight, "dequantize", watched)
    loss = model.train()(batch_of("base")).logits.square().mean()
    gc.collect()
    num_forward = len(made)
    assert num_forward > 10
    assert [ref for ref in made if ref() is not None] == []
    loss.backward()
    assert len(made) > num_forward


def test_an_adapter_trained_on_a_quantized_base_is_saved_as_any_other(tmp_path: Any) -> None:
    model = adapted_model("small", EVERYTHING)
    save_adapter(model, tmp_path / "plain")
    quantize_base(model, "nf4")
    save_adapter(model, tmp_path / "quantized")
    names = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("plain", "quantized")]
    assert names[0] == names[1]
    with pytest.raises(UserError, match="full precision"):
        merge_lora(model)


@pytest.mark.parametrize("size", SIZES)
def test_eight_bits_are_nearer_to_the_whole_weights_than_four(size: str) -> None:
    batch = batch_of(size)
    whole = logits(base_model(size), batch)[batch.attention_mask]
    errors = []
    for kind in KINDS:
        model = base_model(size)
        quantize_base(model, kind)
        errors.append((logits(model, batch)[batch.attention_mask] - whole).norm() / whole.norm())
    four_bits, eight_bits = errors
    assert eight_bits < four_bits / 2
    assert four_bits < 1


def test_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="nf4, int8"):
        quantize_base(base_model("tiny"), "fp4")  # type: ignore[arg-type]
