"""A pack as tensors: samples end to end in one sequence, none of which sees another.

S tokens, n documents, I tiles of all samples together, P the side of a tile in pixels.

Labels stand at their own token: position i is trained to predict labels[i + 1]. The first label of every sample is
masked, or the last token of the sample before would be trained to predict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.grid import num_tiles, num_visual_tokens
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample


@dataclass(frozen=True, kw_only=True)
class Packed:
    """One training sequence. Its counts of visual slots and tiles have been checked against its grids.

    Padding stands at the end as a document of its own, so `cu_seqlens` always covers the whole sequence.
    """

    input_ids: Tensor  # int64 [S]; the pad id where padded
    labels: Tensor  # int64 [S]; -100 where not trained, and at the first token of every document
    position_ids: Tensor  # int64 [S]; 0, 1, ... within each document
    cu_seqlens: Tensor  # int32 [n + 1]; document k is cu_seqlens[k] : cu_seqlens[k + 1]
    image_mask: Tensor  # bool [S]; True where a visual token goes
    tiles: Tensor  # float32 [I, 3, P, P]; image by image, global view first
    grids: Tensor  # int64 [images, 2], on the CPU; (columns, rows)
    tokens_per_side: int
    num_tokens: int  # without padding
    max_seqlen: int  # the longest document, for kernels that ask; known here, so that no step waits for the device
    names: tuple[str, ...]  # of the samples, padding has none
    categories: tuple[str, ...] = ()  # of the samples, what their records teach; "" where nothing is said
    notes: tuple[Any, ...] = ()  # of the samples, what an auxiliary loss asked the loader to say; none unless asked for

    def __post_init__(self) -> None:
        size, num_samples = len(self.input_ids), len(self.names)
        assert len(self.categories) == num_samples, f"{len(self.categories)} categories for {num_samples} samples"
        assert len(self.notes) in (0, num_samples), f"{len(self.notes)} notes for {num_samples} samples"
        for name in ("labels", "position_ids", "image_mask"):
            assert len(getattr(self, name)) == size, f"{name} has {len(getattr(self, name))} of {size} places"
        assert 0 <= self.num_tokens <= size, f"{self.num_tokens} tokens in {size} places"
        num_documents = num_samples + (self.num_tokens < size)
        assert len(self.cu_seqlens) == num_documents + 1, f"{len(self.cu_seqlens)} borders, {num_documents} documents"
        grids = [(int(columns), int(rows)) for columns, rows in self.grids.tolist()]
        slots = int(self.image_mask.sum())
        expected = sum(num_visual_tokens(grid, self.tokens_per_side) for grid in grids)
        assert slots == expected, f"pack of {self.names}: {slots} visual slots, its images make {expected}"
        tiles = sum(map(num_tiles, grids))
        assert len(self.tiles) == tiles, f"pack of {self.names}: {len(self.tiles)} tiles, its grids need {tiles}"

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def token_mask(self) -> Tensor:
        """True where a token is real, bool [S]."""
        return torch.arange(len(self), device=self.input_ids.device) < self.num_tokens

    def with_length(self, size: int) -> Packed:
        """Return the pack padded, or with its padding cut, to `size` places, which must hold all its tokens."""
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

        The grids stay on the CPU, where the layout is computed, and the notes where they are.
        """
        names = ("input_ids", "labels", "position_ids", "cu_seqlens", "image_mask", "tiles")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def pack_samples(
    samples: Sequence[Sample],
    processor: Processor,
    seq_len: int | None = None,
    categories: Sequence[str] | None = None,
    notes: Sequence[Any] = (),
) -> Packed:
    """Lay samples end to end and pad to `seq_len` if it is given. No samples make a sequence of padding alone.

    `categories` has one for each sample, `notes` too where there are any. UserError if the samples are longer than
    `seq_len`.
    """
    lengths = [len(sample) for sample in samples]
    num_tokens = sum(lengths)
    size = num_tokens if seq_len is None else seq_len
    if num_tokens > size:
        raise UserError(f"the samples of a pack have {num_tokens} tokens, more than the sequence of {size}")
    documents = [*lengths, size - num_tokens] if size > num_tokens else lengths
    config = processor.config
    tiles = [torch.zeros(0, 3, config.tile_px, config.tile_px), *(sample.tiles for sample in samples)]
    grids = [torch.zeros(0, 2, dtype=torch.int64), *(sample.grids for sample in samples)]
    return Packed(
        input_ids=_lay_out([sample.input_ids for sample in samples], size, processor.tokenizer.pad_id),
        labels=_lay_out([_without_first(sample.labels) for sample in samples], size, IGNORE_ID),
        position_ids=torch.cat([torch.zeros(0, dtype=torch.int64), *(torch.arange(n) for n in documents)]),
        cu_seqlens=torch.tensor([0, *documents]).cumsum(0).to(torch.int32),
        image_mask=_lay_out([sample.image_mask for sample in samples], size, False),
        tiles=torch.cat(tiles),
        grids=torch.cat(grids),
        tokens_per_side=config.tokens_per_side,
        num_tokens=num_tokens,
        max_seqlen=max(documents, default=0),
        names=tuple(sample.name for sample in samples),
        categories=("",) * len(samples) if categories is None else tuple(categories),
        notes=tuple(notes),
    )


def block_causal_mask(cu_seqlens: Tensor) -> Tensor:
    """Return which place may look at which, bool [S, S]: back within its own document. The oracle for `attend`."""
    lengths = cu_seqlens.diff().long()
    document_S = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return (document_S[:, None] == document_S[None, :]).tril()


def _without_first(labels: Tensor) -> Tensor:
    return torch.cat((labels.new_full((min(len(labels), 1),), IGNORE_ID), labels[1:]))


def _lay_out(rows: Sequence[Tensor], size: int, padding: int | bool) -> Tensor:
    out = torch.full((size,), padding)
    if rows:
        joined = torch.cat(list(rows))
        out[: len(joined)] = joined
    return out
