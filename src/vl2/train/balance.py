"""Balance the load of the experts: update the expert bias after every step, and measure the imbalance.

Models with softmax routing use only the balance loss of each sequence, which the step adds to its loss. Models with
sigmoid routing also have a bias, which affects the choice of experts but gets no gradient: after each optimizer step it
moves by a fixed amount against the load of all tokens on all ranks.

Source: arXiv 2412.10302, section on the language model; 2408.15664 (bias), 2405.04434 (balance loss).
"""

from __future__ import annotations

from torch import Tensor, nn

from vl2.errors import UserError
from vl2.model.moe import Router, update_expert_bias
from vl2.train.parts import HasConfig
from vl2.train.stage import Stage


def routers(model: nn.Module) -> list[Router]:
    """Return the routers of the MoE layers (of a part of a model: its own), in the row order of an expert load."""
    return [module for module in model.modules() if isinstance(module, Router)]


def check_balance(model: HasConfig, stage: Stage) -> None:
    """Raise UserError if the stage updates an expert bias that the model does not have."""
    if stage.expert_bias_step and not model.config.language_config.has_expert_bias:
        raise UserError(
            f"stage {stage.name}: expert_bias_step must be 0, because only topk_method noaux_tc has an expert bias"
        )


def update_expert_biases(model: nn.Module, expert_load_LE: Tensor, step: float) -> None:
    """Move the bias of every layer against its load, in place. The result is identical on every rank."""
    if step:
        for router, load_E in zip(routers(model), expert_load_LE, strict=True):
            update_expert_bias(router, load_E, step)


def load_over_mean(expert_load_LE: Tensor) -> list[float]:
    """Return the load of the fullest expert over the mean, per layer: 1 is balanced, E / K is the maximum."""
    load_LE = expert_load_LE.double()
    means_L = load_LE.mean(dim=1).clamp(min=1e-9) if load_LE.numel() else load_LE.sum(dim=1)
    return [float(x) for x in load_LE.amax(dim=1) / means_L] if load_LE.numel() else []
