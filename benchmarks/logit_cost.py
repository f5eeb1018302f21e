"""How far one form's logits are from those of the plain weights, and the table that says so.

S places, each with a distribution over V tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HEAD = ("weights", "mean divergence", "99th percentile", "largest change of a logit", "same likeliest token")


@dataclass(frozen=True, kw_only=True)
class LogitCost:
    """One form against the plain weights. Divergences in nats."""

    form: str
    mean_divergence: float  # KL of the plain distribution from this one, over all places
    worst_divergence: float  # 99 of 100 places are below it
    largest_change: float  # of a logit, in standard deviations of the plain logits
    same_first: float  # share of places whose likeliest token is the same

    def cells(self) -> list[str]:
        """Return the figures as they stand under `HEAD`."""
        divergences = [f"{self.mean_divergence:.2g}", f"{self.worst_divergence:.2g}"]
        return [self.form, *divergences, f"{self.largest_change:.2f} sd", f"{self.same_first:.1%}"]


def compare_logits(form: str, plain_SV: Tensor, other_SV: Tensor) -> LogitCost:
    divergences, largest = [], 0.0
    scale = plain_SV.std().item()
    for ours, theirs in zip(plain_SV.split(64), other_SV.split(64), strict=True):
        log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
        largest = max(largest, (ours - theirs).abs().max().item() / scale)
    divergence_S = torch.cat(divergences)
    return LogitCost(
        form=form,
        mean_divergence=divergence_S.mean().item(),
        worst_divergence=divergence_S.quantile(0.99).item(),
        largest_change=largest,
        same_first=(plain_SV.argmax(-1) == other_SV.argmax(-1)).float().mean().item(),
    )


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
