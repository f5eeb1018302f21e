"""The prefix cache: key-value rows of earlier prompts, kept in chunks and copied for prompts that begin alike.

A prompt is read in chunks. Where a chunk ends follows from what stands before its end alone: behind an image, behind
the opening of an answer (the end of an earlier turn's prompt), or where a chunk is as long as it may be. Two prompts
that begin alike therefore share their chunks, and the key of a chunk is a hash of all tokens and images from the start
to its end and of how they were cut. Rows out of the cache are those that would be computed, to the last bit, which no
other way gives: a product over other numbers of rows may round otherwise. For the same reason the positions that were
written while an answer was decoded are not kept; the answer is read again with the next question.

A chunk is of use only with all that stand before it. So what is kept of a prompt too long for the cache is its
beginning, and what makes room for a prompt are the ends of others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise, takewhile

from torch import Tensor

from vl2.checkpoint.memory_plan import DEFAULT_PREFIX_BYTES
from vl2.infer.byte_lru import ByteLRU
from vl2.model import Cache
from vl2.process.sample import Sample

# A chunk reads nearly all weights, however short it is: shorter ones than this are joined with what follows.
MIN_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """Positions start : stop of a prompt, read at once; the key stands for all from 0 to stop."""

    start: int
    stop: int
    key: bytes


def chunk_ends(sample: Sample, image_stops: Sequence[int], opening_id: int | None, longest: int | None) -> list[int]:
    """Return where the chunks of a prompt end, the last at its end.

    `image_stops` are the counts of visual tokens up to the end of each image.
    """
    slots = sample.image_mask.nonzero().flatten()
    behind_images = [int(slots[stop - 1]) + 1 for stop in image_stops]
    openings = sample.input_ids == (-1 if opening_id is None else opening_id)
    behind_openings = [int(place) + 2 for place in openings.nonzero().flatten()]  # "<...>:"
    length, ends, last = len(sample), [], 0
    for end in sorted({*behind_images, *behind_openings, length}):
        while longest is not None and min(end, length) - last > longest:
            last += longest
            ends.append(last)
        if end == length or (end < length and end - last >= MIN_CHUNK):
            ends.append(end)
            last = end
    return ends


def plan_chunks(
    sample: Sample,
    image_stops: Sequence[int],
    image_keys: Sequence[bytes],
    *,
    opening_id: int | None,
    longest: int | None,
    namespace: bytes = b"",
) -> list[PrefillChunk]:
    """Return the chunks of a prompt with their keys. The namespace stands for whatever else decides on the result."""
    slots = sample.image_mask.cumsum(0)
    ends = chunk_ends(sample, image_stops, opening_id, longest)
    chunks, key, num_images = [], namespace, 0
    for start, stop in pairwise([0, *ends]):
        content = blake2b(key, digest_size=16)
        content.update(sample.input_ids[start:stop].contiguous().numpy().data)
        # The keys of all images of which a token stands in the chunk, once: where an image goes on is in the tokens.
        while num_images < len(image_keys) and (num_images and image_stops[num_images - 1]) < int(slots[stop - 1]):
            content.update(image_keys[num_images])
            num_images += 1
        key = content.digest()
        chunks.append(PrefillChunk(start=start, stop=stop, key=key))
    return chunks


@dataclass(frozen=True, kw_only=True)
class StoredChunk:
    """What a chunk wrote: its positions of every layer, and the state that the next token is chosen from."""

    layers: tuple[tuple[Tensor, ...], ...]
    state_D: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in (*self.layers, (self.state_D,)) for t in layer)


class PrefixCache:
    """Chunks of prompts that were read before."""

    def __init__(self, max_bytes: int = DEFAULT_PREFIX_BYTES) -> None:
        self._store: ByteLRU[StoredChunk] = ByteLRU(max_bytes)
        self.reused_tokens = 0
        self.read_tokens = 0

    @property
    def max_bytes(self) -> int:
        return self._store.max_bytes

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    def num_known(self, chunks: Sequence[PrefillChunk]) -> int:
        """Return how many tokens of the beginning of a prompt are known. Changes nothing of what is dropped first."""
        known = list(takewhile(lambda part: part.key in self._store, chunks))
        return known[-1].stop if known else 0

    def restore(self, chunks: Sequence[PrefillChunk], row: Cache) -> tuple[int, Tensor | None]:
        """Copy the longest known beginning into an empty row.

        Returns the number of chunks that need not be read, and the state [D] after the last of them.
        """
        known = []
        for part in chunks:
            stored = self._store.get(part.key)
            if stored is None:
                break
            known.append(stored)
        self._use(chunks[: len(known)])
        for part, stored in zip(chunks, known, strict=False):
            for ours, theirs in zip(row.layers, stored.layers, strict=True):
                for t, kept in zip(ours, theirs, strict=True):
                    t[0].narrow(-2, part.start, part.stop - part.start).copy_(kept)
            row.lengths = [part.stop]
            self.reused_tokens += part.stop - part.start
        return len(known), known[-1].state_D if known else None

    def store(self, chunks: Sequence[PrefillChunk], row: Cache, state_D: Tensor) -> None:
        """Keep what the last of a prompt's chunks so far has just written into a row, unless one of them would go."""
        *earlier, part = chunks
        self.read_tokens += part.stop - part.start
        if self._store.max_bytes == 0 or part.key in self._store:
            return
        beginning = self._use(earlier)
        if len(beginning) < len(earlier):
            return
        views = [[t[0].narrow(-2, part.start, part.stop - part.start) for t in layer] for layer in row.layers]
        # Room first: beside what is dropped the copy would be the most memory that a process ever has.
        needed = StoredChunk(layers=tuple(map(tuple, views)), state_D=state_D).nbytes
        if needed + sum(stored.nbytes for stored in beginning) > self._store.max_bytes:
            return
        self._store.make_room(needed)
        layers = tuple(tuple(view.clone() for view in layer) for layer in views)
        stored = StoredChunk(layers=layers, state_D=state_D.clone())
        self._store.put(part.key, stored, stored.nbytes)
        self._use(earlier)

    def _use(self, chunks: Sequence[PrefillChunk]) -> list[StoredChunk]:
        """Return what is known of a beginning, from its end to its start: the order in which it is dropped."""
        return [stored for part in reversed(chunks) if (stored := self._store.get(part.key)) is not None]

    def clear(self) -> None:
        self._store.clear()
