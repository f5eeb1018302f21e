"""The experts of one layer over all ranks: rows go to the ranks that hold their experts, and the results come back.

The rows are sorted by expert, so those of a rank are contiguous. Each row is multiplied as in one process, so the
results are those of one process up to the shape of a product. The row counts are exact, so nothing is dropped.

N rows, E experts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vl2.checkpoint.expert_share import expert_bounds
from vl2.errors import RankLost
from vl2.train.ranks import Ranks


def run_layer(ranks: Ranks, experts: nn.Module, x_ND: Tensor, counts: Sequence[int]) -> Tensor:
    """Run this rank's experts of a layer; all ranks call this together.

    `x_ND` has all rows on the first rank, sorted by expert, and none on the others. `counts` is the number of rows of
    each of the E experts of all ranks. Return the outputs of all rows on the first rank, and none on the others.

    Raise RankLost, on all ranks and with the same message, if a rank's experts fail.
    """
    bounds = expert_bounds(len(counts), ranks.size)
    of_rank = [sum(counts[first:last]) for first, last in pairwise(bounds)]
    with_first = [of_rank[ranks.rank], *[0] * (ranks.size - 1)]
    with_all = of_rank if ranks.is_first else [0] * ranks.size
    rows = ranks.exchange(x_ND, with_all, with_first)
    failure = None
    try:
        own = counts[bounds[ranks.rank] : bounds[ranks.rank + 1]]
        out = experts(rows, torch.tensor(own, device=rows.device)) if len(rows) else rows
    except Exception as error:  # whatever it is, the other ranks must not wait for results
        failure = describe_failure(ranks, error)
    agree(ranks, failure)
    return ranks.exchange(out, with_first, with_all)


def describe_failure(ranks: Ranks, error: Exception) -> str:
    """Return one line that names the rank and the error."""
    what = next(iter(str(error).splitlines()), "") or type(error).__name__
    return f"rank {ranks.rank} of {ranks.size}: {what}"


def agree(ranks: Ranks, failure: str | None) -> None:
    """Raise RankLost on all ranks, with the same message, if any rank passes a failure. All call this together."""
    if float(ranks.max_(torch.tensor([float(failure is not None)]))):
        raise RankLost(next(message for message in ranks.gather_objects(failure) if message is not None))
