"""The messages with which the first rank tells the others what to do next.

A message is a fixed number of integers on the CPU, so that a waiting rank does not occupy its device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import torch

from vl2.train.ranks import Ranks

MAX_EXPERTS = 1024  # of a layer; the largest released size has 72


class Kind(IntEnum):
    IDLE = 0  # the first rank is alive
    LOAD = 1  # a LoadRequest follows
    RUN = 2  # the rows of a layer follow
    STOP = 3


@dataclass(frozen=True, kw_only=True)
class LoadRequest:
    """What the other ranks load. The folder must exist on every machine under the same path."""

    folder: Path
    dtype: torch.dtype | None
    weights: str


@dataclass(frozen=True, kw_only=True)
class Message:
    kind: Kind
    layer: int = 0  # index among the MoE layers
    counts: Sequence[int] = ()  # rows of each expert


def send(ranks: Ranks, message: Message) -> None:
    """Send a message from the first rank to all others."""
    assert len(message.counts) <= MAX_EXPERTS, f"{len(message.counts)} experts"
    numbers = torch.zeros(3 + MAX_EXPERTS, dtype=torch.int64)
    values = [message.kind, message.layer, len(message.counts), *message.counts]
    numbers[: len(values)] = torch.tensor(values)
    ranks.broadcast_(numbers)


def receive(ranks: Ranks) -> Message:
    """Wait for the first rank's next message."""
    kind, layer, num_experts, *counts = ranks.broadcast_(torch.zeros(3 + MAX_EXPERTS, dtype=torch.int64)).tolist()
    return Message(kind=Kind(kind), layer=layer, counts=counts[:num_experts])
