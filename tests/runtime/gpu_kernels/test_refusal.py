"""Where the kernels cannot run, one sentence says why, and what to install."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from tests.model.configs import small_model
from vl2.model import VL2
from vl2.runtime import PlainRunner, explain_choice, gpu_kernels
from vl2.runtime.choose import choose_runner
from vl2.runtime.gpu import GpuKernelRunner

CARD = torch.device("cuda")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    gpu_kernels.refusal.cache_clear()
    yield
    gpu_kernels.refusal.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, *, has_triton: bool, capability: tuple[int, int] = (9, 0)) -> None:
    spec = importlib.util.find_spec("torch") if has_triton else None
    monkeypatch.setattr(gpu_kernels.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)


def test_a_cpu_has_none() -> None:
    assert gpu_kernels.refusal(torch.device("cpu")) == "the model is on cpu"


def test_without_triton_the_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_triton=False)
    reason = gpu_kernels.refusal(CARD) or ""
    assert reason.startswith("Triton is not installed: pip install")
    assert "triton" in reason.removeprefix("Triton")
    assert "\n" not in reason


def test_an_older_card_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_triton=True, capability=(7, 5))
    assert gpu_kernels.refusal(CARD) == "the kernels need compute capability 8.0, the card has 7.5"


def test_an_amd_card_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, has_triton=True)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert gpu_kernels.refusal(CARD) == "the kernels are for NVIDIA cards"


def test_a_triton_that_fails_on_the_card_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from vl2.runtime.gpu_kernels import grouped_matmul

    def fail(device: torch.device) -> None:
        raise RuntimeError("failed to find C compiler\nmore about it")

    pretend(monkeypatch, has_triton=True)
    monkeypatch.setattr(grouped_matmul, "check_product", fail)
    assert gpu_kernels.refusal(CARD) == "Triton does not work here: failed to find C compiler"


def test_the_runner_takes_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "refusal", lambda device: None)
    assert GpuKernelRunner.refusal_on(CARD, torch.float16) is None
    assert "float32" in (GpuKernelRunner.refusal_on(CARD, torch.float32) or "")


def test_a_model_on_a_card_without_triton_runs_in_plain_pytorch_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VL2, "device", CARD)
    pretend(monkeypatch, has_triton=False, capability=(8, 9))
    model = small_model("tiny").to(torch.float16)
    runner = choose_runner(model)
    assert type(runner) is PlainRunner
    lines = explain_choice(runner, model)
    assert any(line.startswith("not Triton kernels: Triton is not installed: ") for line in lines)
