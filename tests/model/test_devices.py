"""Other devices against the CPU. Each test is skipped where its device is not there."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.devices import needs_cuda, without_tf32
from tests.model.configs import small_model
from tests.reference import SIZES, assert_near, messages_of, model_goldens, reference_vlm, sample_of
from vl2.infer.vlm import VLM
from vl2.model.moe import MoE
from vl2.process.sample import collate

needs_mps = pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")
DEVICES = [pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda]), pytest.param("mps", marks=needs_mps)]


def on(device: str, size: str) -> VLM:
    vlm = reference_vlm(size)
    return VLM(copy.deepcopy(vlm.model).to(device), vlm.processor, folder=vlm.folder)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_logits_are_those_of_the_cpu(device: str, size: str) -> None:
    without_tf32()
    batch = collate([sample_of(size, "text"), sample_of(size, "single")])
    with torch.no_grad():
        ours = on(device, size).model(batch.to(device)).logits.cpu()
        assert_near(ours, reference_vlm(size).model(batch).logits, atol=2e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_greedy_tokens_are_the_released_ones(device: str, size: str) -> None:
    without_tf32()
    golden = model_goldens(size)["left_padded_batch"]
    replies = on(device, size).batch([messages_of(size, c) for c in golden["cases"]], max_new_tokens=24)
    assert [list(r.token_ids) for r in replies] == [row["ids"] for row in golden["rows"]]


@pytest.mark.gpu
@needs_cuda
def test_the_grouped_kernel_gives_what_the_loop_gives() -> None:
    moe = next(m for m in small_model().modules() if isinstance(m, MoE)).to(torch.bfloat16)
    x = torch.randn(1, 64, moe.gate.weight.shape[1], generator=torch.manual_seed(0)).to(torch.bfloat16)
    with torch.no_grad():
        on_cpu = moe(x)[0].float()
        on_gpu = moe.to("cuda")(x.to("cuda"))[0].float().cpu()
    torch.testing.assert_close(on_gpu, on_cpu, atol=0.1, rtol=0.05)
