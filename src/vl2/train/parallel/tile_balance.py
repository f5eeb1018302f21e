"""Tile balancing: ranks with many tiles send some to ranks with few, and receive the visual tokens.

The tiles of a few packs of every rank are encoded together, equally many on each rank. Tiles are sent as pixels and
return as visual tokens after the projector. In the backward pass the gradients of the tokens go to the rank that
encoded the tile. The gradients therefore equal those of an unbalanced run, up to the order of summation.

The pixels for the next group of packs are sent while the language model runs on the current group.

The moves depend on the numbers of tiles alone, because every tile costs the encoder the same. Every rank computes the
same moves from the counts of all ranks, and no assignment has a lower maximum.

Source: arXiv 2412.10302, section on training infrastructure (image tiles balanced over data-parallel ranks).

Shapes: I tiles, P side of a tile, Q visual tokens per tile, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vl2.data.pack import Packed
from vl2.model import VL2
from vl2.train.ranks import Arriving, Ranks
from vl2.train.shard import is_sharded


@dataclass(frozen=True, kw_only=True)
class EncodedPacks:
    """Packs with their visual tokens, which are detached from the encoder's graph until `backward`."""

    packs: Sequence[Packed]
    tokens: Sequence[Tensor | None]  # by pack, [I, Q, D]; None if the pack has none and needs none
    encoded_IQD: Tensor  # of all packs, with its graph, followed by a blank tile's if one had to run

    def backward(self) -> None:
        """Backpropagate the gradients of the packs' tokens through the encoder, on all ranks that encoded the tiles."""
        if not self.encoded_IQD.requires_grad:
            return
        gradient_IQD = torch.zeros_like(self.encoded_IQD)
        first = 0
        for pack, tokens_IQD in zip(self.packs, self.tokens, strict=True):
            if tokens_IQD is not None and len(pack.tiles):
                last = first + len(pack.tiles)
                if tokens_IQD.grad is not None:
                    gradient_IQD[first:last] = tokens_IQD.grad
                first = last
        self.encoded_IQD.backward(gradient_IQD)


@dataclass(frozen=True, kw_only=True)
class _TilesInFlight:
    """The tiles of a group of packs, some of which are being sent to other ranks."""

    packs: Sequence[Packed]
    moves: TileMoves
    kept_I3PP: Tensor
    arriving: Arriving | None  # None if no rank moves a tile


class TileBalancer:
    """Encodes the tiles of packs with equal numbers of tiles on each rank. All ranks must use it together."""

    def __init__(self, model: VL2, ranks: Ranks, *, packs_together: int, tile_dtype: torch.dtype) -> None:
        """Balance `packs_together` packs of each rank at a time. More packs balance better but need more memory.

        Tiles are sent in `tile_dtype`. The encoder's own type is exact, because the encoder casts tiles to it anyway.
        """
        assert packs_together >= 1, f"{packs_together} packs together"
        self.packs_together = packs_together
        self._model, self._ranks, self._tile_dtype = model, ranks, tile_dtype
        self._is_sharded = is_sharded(model)
        self._is_trained = any(
            parameter.requires_grad for module in (model.vision, model.projector) for parameter in module.parameters()
        )

    def groups(self, packs: Sequence[Packed], held: Sequence[Sequence[int]]) -> Iterator[EncodedPacks]:
        """Yield this rank's packs in encoded groups. `held` has the number of tiles of each rank for every group.

        Call `backward` on a group before requesting the next one.
        """
        # Send the next group's tiles before yielding, so that they travel while the language model runs.
        sent = self._send(packs, 0, held[0]) if held else None
        for number in range(len(held)):
            assert sent is not None
            encoded = self._encode(sent)
            sent = self._send(packs, number + 1, held[number + 1]) if number + 1 < len(held) else None
            yield encoded

    def _send(self, packs: Sequence[Packed], number: int, held: Sequence[int]) -> _TilesInFlight:
        first = number * self.packs_together
        mine = [pack.to(self._ranks.device) for pack in packs[first : first + self.packs_together]]
        tiles = [pack.tiles.to(self._tile_dtype) for pack in mine]
        side = self._model.config.siglip.image_size
        tiles_I3PP = torch.cat(tiles) if tiles else self._no_tiles(side)
        moves, rank = plan_moves(held), self._ranks.rank
        assert len(tiles_I3PP) == held[rank], f"{len(tiles_I3PP)} tiles here, {held[rank]} were counted"
        sent = moves.moved[rank]
        kept = len(tiles_I3PP) - sum(sent)
        arriving = None
        if moves.num_moved:
            received = [row[rank] for row in moves.moved]
            arriving = self._ranks.start_exchange(tiles_I3PP[kept:], sent, received)
        return _TilesInFlight(packs=mine, moves=moves, kept_I3PP=tiles_I3PP[:kept], arriving=arriving)

    def _encode(self, sent: _TilesInFlight) -> EncodedPacks:
        moves, rank = sent.moves, self._ranks.rank
        num_tiles = moves.encoded[rank]
        tiles_I3PP = sent.kept_I3PP
        if sent.arriving is not None:
            tiles_I3PP = torch.cat((tiles_I3PP, sent.arriving.wait()))
        tokens_IQD = self._run_encoder(tiles_I3PP)
        own_IQD = tokens_IQD[:num_tiles]
        if moves.num_moved:
            kept_IQD, foreign_IQD = own_IQD.split([len(sent.kept_I3PP), num_tiles - len(sent.kept_I3PP)])
            received = [row[rank] for row in moves.moved]
            own_IQD = torch.cat((kept_IQD, self._ranks.exchange(foreign_IQD, received, moves.moved[rank])))
        # With sharded weights, keep the output of a blank tile in the graph, so that all ranks run backward.
        whole_IQD = torch.cat((own_IQD, tokens_IQD[num_tiles:]))
        return EncodedPacks(packs=sent.packs, tokens=self._split_by_pack(sent.packs, own_IQD), encoded_IQD=whole_IQD)

    def _run_encoder(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the visual tokens of the tiles. With sharded weights, a rank without tiles encodes a blank one."""
        if not len(tiles_I3PP) and self._is_sharded:
            tiles_I3PP = tiles_I3PP.new_zeros(1, *tiles_I3PP.shape[1:])
        if len(tiles_I3PP):
            return self._model.encode_tiles(tiles_I3PP)
        return self._no_tokens().requires_grad_(self._is_trained)

    def _split_by_pack(self, packs: Sequence[Packed], own_IQD: Tensor) -> list[Tensor | None]:
        """Return each pack's tokens as leaves of the language model's graph.

        With sharded weights, a pack without tiles gets the tokens of a blank tile, so that all ranks run backward.
        """
        leaves: list[Tensor | None] = []
        for tokens_IQD in own_IQD.split([len(pack.tiles) for pack in packs]):
            if len(tokens_IQD):
                leaves.append(tokens_IQD.detach().requires_grad_(own_IQD.requires_grad))
            elif self._is_sharded:
                leaves.append(own_IQD.new_zeros(1, *own_IQD.shape[1:]).requires_grad_(own_IQD.requires_grad))
            else:
                leaves.append(None)
        return leaves

    def _no_tiles(self, side: int) -> Tensor:
        return torch.zeros(0, 3, side, side, dtype=self._tile_dtype, device=self._ranks.device)

    def _no_tokens(self) -> Tensor:
        config = self._model.config
        dtype = self._model.dtype
        return torch.zeros(
            0, config.tokens_per_side**2, config.projector_config.n_embed, dtype=dtype, device=self._ranks.device
        )


@dataclass(frozen=True, kw_only=True)
class TileMoves:
    """The number of tiles of each rank, and how many of them each other rank encodes."""

    held: tuple[int, ...]
    moved: tuple[tuple[int, ...], ...]  # [from][to]; a rank sends its last tiles, in the order of the receivers

    @cached_property
    def encoded(self) -> tuple[int, ...]:
        """The number of tiles that each rank encodes: the mean rounded down or up."""
        received = [sum(column) for column in zip(*self.moved, strict=True)]
        return tuple(held - sum(row) + more for held, row, more in zip(self.held, self.moved, received, strict=True))

    @property
    def num_moved(self) -> int:
        return sum(map(sum, self.moved))


def plan_moves(held: Sequence[int]) -> TileMoves:
    """Balance the tiles with the fewest moves, so that no rank encodes more than the mean rounded up.

    If the mean is not an integer, the ranks with the most tiles keep one more; ties go to the earlier rank.
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
    """Return the number of tiles that each rank encodes after balancing: the mean rounded down or up."""
    mean, rest = divmod(sum(held), len(held))
    target = [mean] * len(held)
    for rank in sorted(range(len(held)), key=lambda rank: (-held[rank], rank))[:rest]:
        target[rank] += 1
    return target


def imbalance(rounds: Sequence[Sequence[int]]) -> float:
    """Return the summed work of the busiest rank of each round over the mean; 1 is balanced.

    `rounds` has the number of tiles of each rank for each round. Without any tiles the result is 1.
    """
    total = sum(map(sum, rounds))
    busiest = sum(max(counts) for counts in rounds)
    return busiest * len(rounds[0]) / total if total else 1.0
