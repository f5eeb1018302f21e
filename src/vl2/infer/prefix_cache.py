"""The prefix cache: keys and values of earlier prompts, stored in chunks and copied for prompts with the same prefix.

A prompt is prefilled in chunks. Where a chunk ends depends only on the prompt up to that end: a chunk ends after an
image, before an answer (the end of an earlier turn's prompt), or at the maximum length. Two prompts with a common
prefix are therefore split alike over that prefix. The key of a chunk is a hash of all tokens and images from
the start of the prompt to the end of the chunk, and of the chunk boundaries.

Cached keys and values equal the computed ones bit for bit, because both come from chunks with the same number of rows:
a matrix product with another number of rows may round differently. For the same reason the positions written while an
answer was decoded are not stored. The answer is prefilled again with the next question.

A chunk is useful only together with all chunks before it. If a prompt is too long for the cache, its beginning is
therefore stored; to make room for a prompt, the ends of other prompts are evicted first.
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

# Prefilling a chunk reads nearly all weights, even if it is short. A shorter chunk is merged with the one after it.
MIN_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """Positions start : stop of a prompt, prefilled in one pass. The key identifies the prompt from 0 to stop."""

    start: int
    stop: int
    key: bytes


def chunk_ends(sample: Sample, image_stops: Sequence[int], opening_id: int | None, longest: int | None) -> list[int]:
    """Return the end positions of a prompt's chunks in ascending order; the last is the prompt's length.

    `image_stops` are the numbers of visual tokens up to the end of each image. `opening_id` is the token that opens an
    answer, and `longest` the maximum number of tokens in a chunk; both may be None. Vocabularies without roles have no
    such token, and the sample tells where its earlier answers begin. A prompt given as text or ids does not.
    """
    slots = sample.image_mask.nonzero().flatten()
    behind_images = [int(slots[stop - 1]) + 1 for stop in image_stops]
    openings = sample.input_ids == (-1 if opening_id is None else opening_id)
    behind_openings = [int(place) + 2 for place in openings.nonzero().flatten()]  # two tokens: "<...>" and ":"
    before_answers = [start for start, _ in sample.answers]
    length, ends, last = len(sample), [], 0
    for end in sorted({*behind_images, *behind_openings, *before_answers, length}):
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
    """Return the chunks of a prompt with their keys.

    `namespace` goes into all keys. It identifies everything else that the result depends on, such as the weights.
    """
    slots = sample.image_mask.cumsum(0)
    ends = chunk_ends(sample, image_stops, opening_id, longest)
    chunks, key, num_images = [], namespace, 0
    for start, stop in pairwise([0, *ends]):
        content = blake2b(key, digest_size=16)
        content.update(sample.input_ids[start:stop].contiguous().numpy().data)
        # Each image is hashed once, in the chunk with its first token: later chunks inherit its key from `key`, and
        # the token ids show where it continues.
        while num_images < len(image_keys) and (num_images and image_stops[num_images - 1]) < int(slots[stop - 1]):
            content.update(image_keys[num_images])
            num_images += 1
        key = content.digest()
        chunks.append(PrefillChunk(start=start, stop=stop, key=key))
    return chunks


@dataclass(frozen=True, kw_only=True)
class StoredChunk:
    """The keys and values that a chunk wrote in every layer, and the state [D] that gives the next token's logits."""

    layers: tuple[tuple[Tensor, ...], ...]
    state_D: Tensor

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in (*self.layers, (self.state_D,)) for t in layer)


class PrefixCache:
    """Chunks of earlier prompts, up to a limit in bytes."""

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
        """Return the number of leading tokens of a prompt that are cached. The order of eviction does not change."""
        known = list(takewhile(lambda part: part.key in self._store, chunks))
        return known[-1].stop if known else 0

    def restore(self, chunks: Sequence[PrefillChunk], row: Cache) -> tuple[int, Tensor | None]:
        """Copy the longest cached prefix into an empty row.

        Return the number of chunks copied, and the state [D] after the last of them, or None if nothing is cached.
        """
        assert not row.num_forgotten, "the row of an answer that has dropped positions is not empty"
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
        """Store what the last of `chunks` has just written into a row; `state_D` is the state after it.

        `chunks` are all chunks of the prompt so far. Store nothing if an earlier one is not cached, or if one of them
        would have to be evicted to make room. A row that has dropped positions does not hold its prompt in order.
        """
        assert not row.num_forgotten, f"{row.num_forgotten} positions were dropped"
        *earlier, part = chunks
        self.read_tokens += part.stop - part.start
        if self._store.max_bytes == 0 or part.key in self._store:
            return
        beginning = self._use(earlier)
        if len(beginning) < len(earlier):
            return
        views = [[t[0].narrow(-2, part.start, part.stop - part.start) for t in layer] for layer in row.layers]
        # Evict before copying: the copy beside the entries to be evicted would raise the process's peak memory.
        needed = StoredChunk(layers=tuple(map(tuple, views)), state_D=state_D).nbytes
        if needed + sum(stored.nbytes for stored in beginning) > self._store.max_bytes:
            return
        self._store.make_room(needed)
        layers = tuple(tuple(view.clone() for view in layer) for layer in views)
        stored = StoredChunk(layers=layers, state_D=state_D.clone())
        self._store.put(part.key, stored, stored.nbytes)
        self._use(earlier)

    def _use(self, chunks: Sequence[PrefillChunk]) -> list[StoredChunk]:
        """Mark cached chunks as used and return them, from the last to the first, which is their order of eviction."""
        return [stored for part in reversed(chunks) if (stored := self._store.get(part.key)) is not None]

    def clear(self) -> None:
        self._store.clear()
