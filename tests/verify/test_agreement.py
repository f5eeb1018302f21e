"""A fault in one of the ways to an answer is found by comparing it with another."""

from __future__ import annotations

import pytest
import torch

from vl2.kernels import load_kernels
from vl2.kernels import prefill_ops as kernels
from vl2.model import language
from vl2.model.cache import Cache
from vl2.runtime.fused_passes import FusedLanguage
from vl2.verify import agreement

AGREEMENT = "agreement on this machine"


def failed(report) -> set[str]:
    return {
        check["name"].rpartition(",")[0] or check["name"]
        for check in report.page["checks"]
        if check["group"] == AGREEMENT and check["verdict"] == "fail"
    }


def test_a_cache_that_forgets_is_found(verify, monkeypatch):
    """Each pass loses what was read before it."""
    monkeypatch.setenv("VL2_KERNELS", "off")  # they keep positions by themselves
    write = Cache.write

    def write_zeros(self, layer, new):
        seen = write(self, layer, new)
        start = self.lengths[0]
        for stored in seen:
            stored.narrow(-2, 0, start).zero_()
        return seen

    monkeypatch.setattr(Cache, "write", write_zeros)
    assert "cached = read at once, uncached" in failed(verify("nano"))


def test_kernels_that_are_wrong_are_found(verify, monkeypatch):
    if load_kernels() is None:
        pytest.skip("no kernels here")
    normalize = kernels.normalize
    monkeypatch.setattr(kernels, "normalize", lambda *given: normalize(*given).flip(-1))
    monkeypatch.setattr(FusedLanguage, "prefill", lambda *_: None)
    assert "kernels = plain PyTorch" in failed(verify("nano"))


def test_rotary_angles_that_are_rounded_with_the_weights_are_found(verify, monkeypatch):
    """What ruins the released code: a cast of the model takes frequencies, and so positions, with it."""
    exact, forward = language.rotary_angles, language.Decoder.forward
    types: list[torch.dtype] = []

    def noting_forward(self, x_BSD, *rest, **named):
        types.append(x_BSD.dtype)
        return forward(self, x_BSD, *rest, **named)

    def rounded(positions_BS, dim, theta):
        if types[-1] != torch.bfloat16:
            return exact(positions_BS, dim, theta)
        frequencies = (1.0 / theta ** (torch.arange(0, dim, 2) / dim)).to(torch.bfloat16)
        angles = (positions_BS.to(torch.bfloat16).unsqueeze(-1) * frequencies).float()
        return angles.cos(), angles.sin()

    monkeypatch.setenv("VL2_KERNELS", "off")  # they make angles of their own
    monkeypatch.setattr(language, "rotary_angles", rounded)
    monkeypatch.setattr(language.Decoder, "forward", noting_forward)
    assert failed(verify("nano")) == {"bfloat16 = float32"}


def test_distance_is_0_for_the_same_and_about_1_for_unrelated_logits():
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(4, 1000, generator=draw) for _ in range(2))
    assert float(agreement.distances(ours, ours).max()) == 0
    assert torch.allclose(agreement.distances(ours, theirs), torch.full((4,), 2**0.5), atol=0.1)
    # What is added to all logits changes no answer, and does not make them look closer either.
    assert torch.allclose(agreement.distances(ours + 1e3, theirs + 1e3), torch.full((4,), 2**0.5), atol=0.1)
