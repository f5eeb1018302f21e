"""Pack samples into full sequences with balanced numbers of tiles, and build the tensors of a pack.

Packing is best fit over the samples of one window: first the large samples by decreasing size, then the small ones in
the order in which they were drawn. Sorted small samples would end up beside their like, and a step of few packs would
hold one kind of sample only.

A pack has two budgets. The token budget is hard, and samples are never truncated. The tile budget keeps the cost of
the vision encoder even between packs; a sample that exceeds it alone is kept, in a pack that it shares only with
samples without images.

Shapes: S tokens, n documents, I tiles of all samples together, P pixels per side of a tile.

Labels are not shifted: position i is trained to predict labels[i + 1]. The first label of every sample is masked, so
that the last token of the sample before it is not trained to predict it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl2.data.index import Ints
from vl2.errors import UserError
from vl2.grid import ImageLayout
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample

LARGE = 1 / 8  # of a pack; smaller samples fill the gaps in the order drawn
_SCALE = 16
_TAKEN = 2**62  # more than any distance

Members = list[int]  # numbers of the samples in one pack, in the order in which they were drawn


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How samples share a sequence. Length and packing default to the paper's; the tile budget is our choice."""

    seq_len: int = 4096
    max_tiles: int = 16
    is_packed: bool = True  # False: one sample per sequence, as in the paper's first stage

    def __post_init__(self) -> None:
        if self.seq_len < 1 or self.max_tiles < 1:
            raise UserError(f"seq_len and max_tiles must be at least 1, got {self.seq_len} and {self.max_tiles}")


class _OpenPacks:
    """The packs that have room, indexed by free tiles and free tokens.

    For each number of free tiles, the numbers of free tokens form a bit set in one integer, so that shifting finds
    the tightest fit without a search.
    """

    def __init__(self, max_tiles: int) -> None:
        self._lefts = [0] * (max_tiles + 1)
        self._packs: dict[tuple[int, int], list[int]] = defaultdict(list)

    def put(self, pack: int, tokens_left: int, tiles_left: int) -> None:
        self._packs[tiles_left, tokens_left].append(pack)
        self._lefts[tiles_left] |= 1 << tokens_left

    def take(self, num_tokens: int, num_tiles: int) -> tuple[int, int, int] | None:
        """Remove the pack that fits tightest and return (pack, free tokens, free tiles); None if none fits.

        The pack with the fewest free tokens wins; ties go to the fewest free tiles.
        """
        fitting = 0
        for left in self._lefts[num_tiles:]:
            fitting |= left
        fitting >>= num_tokens
        if not fitting:
            return None
        tokens_left = num_tokens + (fitting & -fitting).bit_length() - 1
        bit = 1 << tokens_left
        tiles_left = next(i for i in range(num_tiles, len(self._lefts)) if self._lefts[i] & bit)
        packs = self._packs[tiles_left, tokens_left]
        pack = packs.pop()
        if not packs:
            self._lefts[tiles_left] ^= bit
        return pack, tokens_left, tiles_left


def make_packs(num_tokens: Ints, num_tiles: Ints, packing: Packing) -> list[Members]:
    """Divide samples into packs, each sample into exactly one. The result depends on the arguments alone.

    No sample may be longer than a sequence.
    """
    assert not len(num_tokens) or int(num_tokens.max()) <= packing.seq_len, "a sample is longer than a sequence"
    if not packing.is_packed:
        return [[number] for number in range(len(num_tokens))]
    size = np.maximum(num_tokens / packing.seq_len, np.minimum(num_tiles / packing.max_tiles, 1))
    packs: list[Members] = []
    open_packs = _OpenPacks(packing.max_tiles)
    tokens, tiles = num_tokens.tolist(), num_tiles.tolist()
    for number in np.argsort(-np.where(size > LARGE, size, 0), kind="stable").tolist():
        wanted = min(tiles[number], packing.max_tiles)  # a sample above the tile budget uses the whole budget
        found = open_packs.take(tokens[number], wanted)
        if found is None:
            found = len(packs), packing.seq_len, packing.max_tiles
            packs.append([])
        pack, tokens_left, tiles_left = found
        packs[pack].append(number)
        open_packs.put(pack, tokens_left - tokens[number], tiles_left - wanted)
    return [sorted(pack) for pack in packs]


def even_order(contents: Ints, order: Ints) -> Ints:
    """Reorder packs so that every run of consecutive packs has about the mean of each column of `contents`.

    `contents` is [packs, columns]. The greedy choice takes the pack that brings the running sums closest to their
    expected values, each column scaled by its mean; ties go to the earlier pack in `order`. The arithmetic uses
    integers only, so that all machines agree.
    """
    if not len(order):
        return order
    mean = contents.mean(axis=0)
    used = mean > 0
    # Divide each column by the square root of its mean, so that a column counts as a random (Poisson) count would.
    scaled = np.rint(contents[order][:, used] * (_SCALE / np.sqrt(mean[used]))).astype(np.int64)
    target = np.rint(scaled.mean(axis=0)).astype(np.int64)
    squares = (scaled * scaled).sum(axis=1)
    off = np.zeros_like(target)
    chosen = np.empty_like(order)
    for turn in range(len(order)):
        # |off - target + row|^2 without the term that is equal for all rows
        best = int(np.argmin(squares + 2 * (scaled @ (off - target))))
        off += scaled[best] - target
        squares[best] = _TAKEN
        scaled[best] = 0
        chosen[turn] = order[best]
    return chosen


def balance(num_tiles: list[int], num_tokens: list[int], num_ranks: int) -> list[list[int]]:
    """Assign packs to ranks with balanced tiles, then balanced tokens: the largest pack to the least loaded rank.

    The numbers of packs differ by at most one. Each rank runs its packs with the most tiles first, so that packs that
    run at the same time on different ranks cost about the same.
    """
    if num_ranks < 1:
        raise UserError(f"there must be at least one rank, got {num_ranks}")
    least, num_larger = divmod(len(num_tiles), num_ranks)
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    least_loaded = [(0, 0, rank) for rank in range(num_ranks)]  # a heap of (tiles, tokens, rank)
    for pack in sorted(range(len(num_tiles)), key=lambda i: (-num_tiles[i], -num_tokens[i], i)):
        tiles, tokens, rank = heappop(least_loaded)
        # Full ranks leave the heap. Only `num_larger` ranks may take one pack more than the others.
        while len(ranks[rank]) >= least + (num_larger > 0):
            tiles, tokens, rank = heappop(least_loaded)
        ranks[rank].append(pack)
        num_larger -= len(ranks[rank]) == least + 1
        heappush(least_loaded, (tiles + num_tiles[pack], tokens + num_tokens[pack], rank))
    return ranks


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One training sequence as tensors. Its numbers of visual tokens and tiles are checked against its grids.

    Padding comes last and is a document of its own, so `cu_seqlens` always covers the whole sequence.
    """

    input_ids: Tensor  # int64 [S]; the pad id where padded
    labels: Tensor  # int64 [S]; IGNORE_ID where not trained, and at the first token of every document
    position_ids: Tensor  # int64 [S]; 0, 1, ... within each document
    cu_seqlens: Tensor  # int32 [n + 1]; document k is cu_seqlens[k] : cu_seqlens[k + 1]
    image_mask: Tensor  # bool [S]; True where a visual token goes
    tiles: Tensor  # float32 [I, 3, P, P]; image by image, global view first
    grids: Tensor  # int64 [images, 2], on the CPU; (columns, rows)
    layout: ImageLayout  # which views an image has, and the order of their tokens
    num_tokens: int  # without padding
    max_seqlen: int  # the longest document, for kernels that need it; an int, so that no step syncs with the device
    names: tuple[str, ...]  # of the samples; padding has none
    categories: tuple[str, ...] = ()  # of the samples' records; "" if unknown
    notes: tuple[Any, ...] = ()  # of the samples, from `LoaderOptions.note` for an auxiliary loss; empty without it
    overviews: Tensor | None = None  # float32 [J, 3, B, B]; overviews that are not tiles
    prompt_lengths: tuple[int, ...] = ()  # of the samples, for a window over answers; () if unknown

    def __post_init__(self) -> None:
        size, num_samples = len(self.input_ids), len(self.names)
        assert len(self.categories) == num_samples, f"{len(self.categories)} categories for {num_samples} samples"
        assert len(self.notes) in (0, num_samples), f"{len(self.notes)} notes for {num_samples} samples"
        assert len(self.prompt_lengths) in (0, num_samples), (
            f"{len(self.prompt_lengths)} prompts, {num_samples} samples"
        )
        for name in ("labels", "position_ids", "image_mask"):
            assert len(getattr(self, name)) == size, f"{name} has {len(getattr(self, name))} of {size} places"
        assert 0 <= self.num_tokens <= size, f"{self.num_tokens} tokens in {size} places"
        num_documents = num_samples + (self.num_tokens < size)
        assert len(self.cu_seqlens) == num_documents + 1, f"{len(self.cu_seqlens)} borders, {num_documents} documents"
        grids = [(int(columns), int(rows)) for columns, rows in self.grids.tolist()]
        slots = int(self.image_mask.sum())
        expected = sum(self.layout.num_tokens(grid) for grid in grids)
        assert slots == expected, f"pack of {self.names}: {slots} visual slots, its images make {expected}"
        tiles = sum(map(self.layout.num_tiles, grids))
        assert len(self.tiles) == tiles, f"pack of {self.names}: {len(self.tiles)} tiles, its grids need {tiles}"
        overviews = sum(map(self.layout.num_overviews, grids))
        assert self.num_overviews == overviews, f"pack of {self.names}: {self.num_overviews} of {overviews} overviews"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_overviews(self) -> int:
        return 0 if self.overviews is None else len(self.overviews)

    @property
    def num_views(self) -> int:
        """The number of views that the encoder reads: tiles, and overviews that are not tiles."""
        return len(self.tiles) + self.num_overviews

    @property
    def token_mask(self) -> Tensor:
        """A mask that is False at padding, bool [S]."""
        return torch.arange(len(self), device=self.input_ids.device) < self.num_tokens

    def with_length(self, size: int) -> Packed:
        """Return the pack with its padding grown or shrunk to a length of `size`, which must hold all its tokens."""
        assert self.num_tokens <= size, f"{self.num_tokens} tokens in {size} places"
        if size == len(self):
            return self
        num_samples, added = len(self.names), size - self.num_tokens
        borders = self.cu_seqlens[: num_samples + 1]
        lengths = [*borders.diff().tolist(), added]
        padding = torch.arange(added, device=self.position_ids.device)
        return replace(
            self,
            input_ids=self._resize(self.input_ids, added, 0),
            labels=self._resize(self.labels, added, IGNORE_ID),
            image_mask=self._resize(self.image_mask, added, False),
            position_ids=torch.cat((self.position_ids[: self.num_tokens], padding)),
            cu_seqlens=torch.cat((borders, borders.new_full((min(added, 1),), size))),
            max_seqlen=max(lengths),
        )

    def _resize(self, tensor: Tensor, added: int, value: int | bool) -> Tensor:
        return torch.cat((tensor[: self.num_tokens], tensor.new_full((added,), value)))

    def to(self, device: torch.device | str) -> Packed:
        """Return the pack with its tensors on `device`.

        The grids stay on the CPU, where the layout is computed; the notes are not moved.
        """
        names = ("input_ids", "labels", "position_ids", "cu_seqlens", "image_mask", "tiles")
        overviews = None if self.overviews is None else self.overviews.to(device)
        return replace(self, overviews=overviews, **{name: getattr(self, name).to(device) for name in names})


def pack_samples(
    samples: Sequence[Sample],
    processor: Processor,
    seq_len: int | None = None,
    categories: Sequence[str] | None = None,
    notes: Sequence[Any] = (),
) -> Packed:
    """Concatenate samples and pad them to `seq_len` if it is given. Without samples the sequence is all padding.

    `categories` has one entry for each sample; `notes` has one for each sample or is empty. Raise UserError if the
    samples are longer than `seq_len`.
    """
    lengths = [len(sample) for sample in samples]
    num_tokens = sum(lengths)
    size = num_tokens if seq_len is None else seq_len
    if num_tokens > size:
        raise UserError(f"the samples of a pack have {num_tokens} tokens, more than the sequence of {size}")
    documents = [*lengths, size - num_tokens] if size > num_tokens else lengths
    tile_px = processor.cutter.tile_px
    tiles = [torch.zeros(0, 3, tile_px, tile_px), *(sample.tiles for sample in samples)]
    overviews = [sample.overviews for sample in samples if sample.overviews is not None]
    grids = [torch.zeros(0, 2, dtype=torch.int64), *(sample.grids for sample in samples)]
    return Packed(
        input_ids=_concat_and_pad([sample.input_ids for sample in samples], size, processor.tokenizer.pad_id),
        labels=_concat_and_pad([_mask_first(sample.labels) for sample in samples], size, IGNORE_ID),
        position_ids=torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(n) for n in documents)]),
        cu_seqlens=torch.tensor([0, *documents]).cumsum(0).to(torch.int32),
        image_mask=_concat_and_pad([sample.image_mask for sample in samples], size, False),
        tiles=torch.cat(tiles),
        grids=torch.cat(grids),
        layout=processor.cutter.layout,
        overviews=torch.cat(overviews) if overviews else None,
        num_tokens=num_tokens,
        max_seqlen=max(documents, default=0),
        names=tuple(sample.name for sample in samples),
        categories=("",) * len(samples) if categories is None else tuple(categories),
        notes=tuple(notes),
        prompt_lengths=tuple(sample.prompt_length for sample in samples),
    )


def _mask_first(labels: Tensor) -> Tensor:
    return torch.cat((labels.new_full((min(len(labels), 1),), IGNORE_ID), labels[1:]))


def _concat_and_pad(rows: Sequence[Tensor], size: int, padding: int | bool) -> Tensor:
    out = torch.full((size,), padding)
    if rows:
        joined = torch.cat(list(rows))
        out[: len(joined)] = joined
    return out
