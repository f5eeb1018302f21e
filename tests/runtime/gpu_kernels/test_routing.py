"""The fused choice of experts is that of the model's router, and takes the lower index of equal scores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.configs import small_config
from tests.runtime.gpu_kernels.interpreted import DEVICE
from vl2.model.moe import Router
from vl2.runtime.gpu_kernels.routing import route

RULES: dict[str, dict[str, Any]] = {
    "tiny and small": {"size": "small"},
    "base": {"size": "base", "n_group": 1, "topk_group": 1},
    "normalized softmax": {"size": "small", "norm_topk_prob": True, "routed_scaling_factor": 2.5},
}


def router(size: str, **language: Any) -> Router:
    """Return a router with random weights, and a random expert bias if its kind has one."""
    made = Router(small_config(size, **language).language_config).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    made.weight.normal_(generator=generator)
    if made.e_score_correction_bias is not None:
        made.e_score_correction_bias.normal_(0, 0.3, generator=generator)
    return made


def fused(made: Router, logits_TE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    bias = made.e_score_correction_bias
    found = route(
        logits_TE.to(DEVICE),
        None if bias is None else bias.to(DEVICE),
        made.experts_per_token,
        is_sigmoid=made.config.scoring_func == "sigmoid",
        is_normalized=made.config.norm_topk_prob,
        scale=made.config.routed_scaling_factor,
    )
    weight_TK, scores_TE, expert_TK = (t.cpu() for t in found)
    return weight_TK, scores_TE, expert_TK


def by_expert(values_TK: Tensor, expert_TK: Tensor) -> Tensor:
    """Return the values in the order of their experts' indices. A router may give its experts in any order."""
    return values_TK.gather(1, expert_TK.argsort(dim=1))


@pytest.mark.parametrize("rule", RULES)
def test_experts_weights_and_scores_are_those_of_the_router(rule: str) -> None:
    made = router(**RULES[rule])
    x_TD = torch.randn(9, made.config.hidden_size, generator=torch.Generator().manual_seed(1))
    expected_weight, expected_scores, expected_expert = made(x_TD)
    weight_TK, scores_TE, expert_TK = fused(made, made.logits(x_TD))
    assert torch.equal(expert_TK.sort(dim=1).values, expected_expert.sort(dim=1).values)
    torch.testing.assert_close(scores_TE, expected_scores, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        by_expert(weight_TK, expert_TK), by_expert(expected_weight, expected_expert), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("rule", RULES)
def test_of_equal_scores_the_lower_index_is_chosen(rule: str) -> None:
    made = router(**RULES[rule])
    E, K = made.num_experts, made.experts_per_token
    if made.e_score_correction_bias is not None:
        made.e_score_correction_bias.zero_()
    # A few levels, so that most tokens have ties at the last chosen place; the last token has nothing but ties.
    logits_TE = torch.randint(0, 3, (20, E), generator=torch.Generator().manual_seed(2)).float()
    logits_TE[-1] = 0
    weight_TK, _, expert_TK = fused(made, logits_TE)
    expected_TK = logits_TE.argsort(dim=1, descending=True, stable=True)[:, :K]
    assert torch.equal(expert_TK, expected_TK)
    # Whichever of equal experts the model's router takes, the weights are the same.
    made.logits = lambda x_TD: logits_TE  # type: ignore[method-assign]
    expected_weight, _, _ = made(logits_TE)
    torch.testing.assert_close(weight_TK.sort(dim=1).values, expected_weight.sort(dim=1).values, rtol=1e-6, atol=1e-7)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, in the interpreter
def test_numbers_that_are_not_finite_never_name_an_expert_that_does_not_exist() -> None:
    made = router("small")
    logits_TE = torch.zeros(3, made.num_experts)
    logits_TE[0] = float("nan")
    logits_TE[1, 3] = float("inf")
    logits_TE[2] = -float("inf")
    _, _, expert_TK = fused(made, logits_TE)
    assert 0 <= int(expert_TK.min()) <= int(expert_TK.max()) < made.num_experts


def test_no_tokens_choose_no_experts() -> None:
    made = router(**RULES["base"])
    weight_TK, scores_TE, expert_TK = fused(made, torch.empty(0, made.num_experts))
    assert weight_TK.shape == expert_TK.shape == (0, made.experts_per_token)
    assert scores_TE.shape == (0, made.num_experts)
