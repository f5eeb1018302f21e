"""Which tiles move from which rank to which, so that all ranks encode as many. Integers only, no tensors.

A tile costs the encoder the same whatever it shows, so even counts are even work. Every rank computes the same moves
from the counts of all, and no assignment has a lower maximum.

Source: arXiv 2412.10302, section on training infrastructure (image tiles balanced over data-parallel ranks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, kw_only=True)
class TileMoves:
    """How many tiles each rank has, and how many of them each other rank encodes for it."""

    held: tuple[int, ...]
    moved: tuple[tuple[int, ...], ...]  # [from][to], in the order in which the sender's last tiles leave

    @cached_property
    def encoded(self) -> tuple[int, ...]:
        """The tiles that each rank encodes: a floor or ceiling of the mean."""
        received = [sum(column) for column in zip(*self.moved, strict=True)]
        return tuple(held - sum(row) + more for held, row, more in zip(self.held, self.moved, received, strict=True))

    @property
    def num_moved(self) -> int:
        return sum(map(sum, self.moved))


def plan_moves(held: Sequence[int]) -> TileMoves:
    """Even the tiles out with the fewest moves: the most that any rank encodes is the mean, rounded up.

    Where the mean is not whole, the ranks with most tiles keep one more; ties go to the earlier rank.
    """
    target = even_counts(held)
    moved = [[0] * len(held) for _ in held]
    wanting = [(rank, target[rank] - held[rank]) for rank in range(len(held)) if held[rank] < target[rank]]
    wanting.reverse()
    for rank, count in enumerate(held):
        surplus = count - target[rank]
        while surplus > 0:
            taker, room = wanting.pop()
            taken = min(surplus, room)
            moved[rank][taker] += taken
            surplus -= taken
            if taken < room:
                wanting.append((taker, room - taken))
    return TileMoves(held=tuple(held), moved=tuple(map(tuple, moved)))


def even_counts(held: Sequence[int]) -> list[int]:
    """Return how many tiles each rank encodes once they are even: the mean, rounded down or up."""
    mean, rest = divmod(sum(held), len(held))
    target = [mean] * len(held)
    for rank in sorted(range(len(held)), key=lambda rank: (-held[rank], rank))[:rest]:
        target[rank] += 1
    return target


def imbalance(rounds: Sequence[Sequence[int]]) -> float:
    """Return the work of the busiest rank over the mean, in rounds in which all wait for the busiest. 1 is even.

    One sequence a round: the tiles of each rank. Without a tile it is 1.
    """
    total = sum(map(sum, rounds))
    busiest = sum(max(counts) for counts in rounds)
    return busiest * len(rounds[0]) / total if total else 1.0
