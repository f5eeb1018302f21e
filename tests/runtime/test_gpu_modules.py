"""A model with Triton kernels answers like the model itself; on a CPU the kernels run in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.configs import small_model
from tests.runtime.gpu_kernels.interpreted import DEVICE, bfloat16_products  # noqa: F401
from vl2.model import VL2, Cache
from vl2.model.moe import MoE
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantize_model import SCHEMES, SchemeName, quantize_model
from vl2.runtime import PlainRunner, gpu_modules
from vl2.runtime.gpu import GpuKernelRunner
from vl2.runtime.gpu_kernels import grouped_matmul, routing

# The interpreter is slow. A router with experts in groups is not fused, and the released models have none.
SMALL = {"num_hidden_layers": 2, "vocab_size": 100, "n_group": 1, "topk_group": 1}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let modules take this device for a card, and return the list of what is launched."""
    monkeypatch.setattr(gpu_modules, "is_on_card", lambda x: True)
    seen: list[str] = []

    def watched(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            seen.append(f"{name} {arguments[1].kind}" if name == "multiply" else name)
            return function(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    watched(grouped_matmul, "multiply")
    watched(routing, "route")
    return seen


def decoded(runner: PlainRunner, num_prompt: int) -> torch.Tensor:
    """Return the logits of a prompt and of a step after it, [2, V]."""
    model = runner.model
    row = Cache.allocate(model.config.language_config, 1, 16, dtype=model.dtype, device=model.device)
    ids = torch.arange(5, 5 + num_prompt, device=model.device).unsqueeze(0)
    first_V = runner.logits(runner.prefill(model.language.embed(ids), row))
    return torch.stack((first_V, runner.decode([7], [row], 1)[0]))


def model_of(size: str, weights: str) -> VL2:
    model = small_model(size, **SMALL).to(DEVICE)
    if weights != "plain":
        scheme: SchemeName = "int8" if weights == "int8" else "int4"
        quantize_model(model, SCHEMES[scheme])
    return model.to(torch.float16)


@pytest.mark.parametrize(
    ("size", "weights"), [("tiny", "plain"), ("tiny", "int8"), ("base", "plain"), ("base", "int4")]
)
@torch.inference_mode()
def test_a_model_with_the_kernels_gives_the_logits_of_the_model(size: str, weights: str, launches: list[str]) -> None:
    model = model_of(size, weights)
    expected = decoded(PlainRunner(model), 6)
    assert not launches
    found = decoded(GpuKernelRunner(model), 6)
    # Both round to float16 after each layer; the plain model rounds dequantized weights as well.
    assert (found - expected).norm() < 0.01 * expected.norm()
    num_moe = sum(isinstance(module, MoE) for module in model.modules())
    kinds = {name.removeprefix("multiply ") for name in launches if name != "route"}
    assert kinds == {"plain" if weights == "plain" else weights}
    assert launches.count("route") == 2 * num_moe


@torch.inference_mode()
def test_all_experts_of_a_layer_take_two_launches(launches: list[str]) -> None:
    # 20 hidden units: gate and up are padded to whole panels in int4.
    plain = small_model("base", moe_intermediate_size=20, num_hidden_layers=2).half()
    quantize_model(plain, SCHEMES["int4"])
    (experts, *_) = (module for module in plain.modules() if isinstance(module, QuantizedExperts))
    fast = gpu_modules.with_gpu_kernels(plain.to(DEVICE)).get_submodule(
        next(name for name, module in plain.named_modules() if module is experts)
    )
    counts_E = torch.zeros(experts.num_experts, dtype=torch.int64)
    counts_E[1], counts_E[3] = 3, 2
    x_ND = torch.randn(5, experts.width, generator=torch.Generator().manual_seed(0)).to(DEVICE, torch.float16)
    expected = experts(x_ND, counts_E)
    found = fast(x_ND, counts_E.to(DEVICE))
    assert launches == ["multiply int4"] * 2
    assert (found - expected).float().norm() < 0.005 * expected.float().norm()


@torch.inference_mode()
def test_many_rows_and_other_types_are_left_to_the_plain_layer(launches: list[str]) -> None:
    plain = torch.nn.Linear(32, 16).requires_grad_(False).half()
    layer = QuantizedLinear.like(plain, "int4")
    layer.quantize_from(plain.weight)
    fast = gpu_modules.counterparts.counterpart_of(layer, gpu_modules._counterpart)
    many = torch.ones(gpu_modules.MAX_ROWS + 1, 32, dtype=torch.float16)
    assert torch.equal(fast(many), layer(many))
    assert not launches
    fast(many[:-1].to(DEVICE))
    assert launches == ["multiply int4"]
    with torch.inference_mode(False), torch.enable_grad():
        fast(many[:1].clone().requires_grad_()).sum().backward()
    plain.float()
    layer.float()
    assert torch.equal(fast(many[:1].float()), layer(many[:1].float()))
    assert launches == ["multiply int4"]


def test_the_model_itself_stays_as_it_is_and_shares_its_weights() -> None:
    model = model_of("base", "int8")
    before = [type(module) for module in model.modules()]
    fast = gpu_modules.with_gpu_kernels(model)
    assert [type(module) for module in model.modules()] == before
    for (name, mine), (other, theirs) in zip(fast.state_dict().items(), model.state_dict().items(), strict=True):
        assert name == other
        assert mine.data_ptr() == theirs.data_ptr()
