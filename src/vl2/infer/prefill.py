"""Prefill one prompt into a cache row: copy the cached prefix, encode the images, and process the rest in chunks.

Golden: incremental_prefilling in tests/golden/reference/model.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from hashlib import blake2b

import torch
from torch import Tensor

from vl2.checkpoint.memory_plan import DEFAULT_ENCODER_BYTES, DEFAULT_PREFIX_BYTES
from vl2.infer.image_tokens import EncoderCache, TiledImage, encode_image, images_of
from vl2.infer.prefix_cache import PrefillChunk, PrefixCache, plan_chunks
from vl2.model import Cache
from vl2.process.sample import Sample
from vl2.runtime import Runner


class Reuse:
    """The caches of a loaded model that serve later requests. They make answers faster but never change them."""

    def __init__(self, *, encoder_bytes: int = DEFAULT_ENCODER_BYTES, prefix_bytes: int = DEFAULT_PREFIX_BYTES) -> None:
        """Cache encoded images and prefixes of prompts up to these numbers of bytes; 0 caches nothing."""
        self.encoder = EncoderCache(encoder_bytes)
        self.prefix = PrefixCache(prefix_bytes)

    @property
    def max_bytes(self) -> int:
        return self.encoder.max_bytes + self.prefix.max_bytes

    def clear(self) -> None:
        self.encoder.clear()
        self.prefix.clear()


class Prefill:
    """Prefill one prompt into an empty one-row cache, step by step, so that other requests can decode in between."""

    def __init__(
        self,
        runner: Runner,
        sample: Sample,
        row: Cache,
        *,
        opening_id: int | None,
        max_chunk: int | None = None,
        reuse: Reuse | None = None,
        variant: str = "",
    ) -> None:
        """Hash the images and plan the chunks of a prompt. The model runs in `step` only.

        `opening_id` is the token that opens an answer, if the tokenizer has one. `max_chunk` limits the tokens of a
        chunk. `variant` names a change to the runner's model, such as an adapter: variants do not share cache entries.
        """
        assert row.lengths == [0], f"a prompt is read into an empty row, this one holds {row.lengths}"
        self._runner, self._sample, self._row, self._reuse = runner, sample, row, reuse
        self._images = images_of(sample)
        weights = runner.key + variant.encode()
        hashes = [image.key() if reuse is not None else b"" for image in self._images]
        self._image_keys = [blake2b(weights + key, digest_size=16).digest() for key in hashes]
        self._chunks = plan_chunks(
            sample,
            [image.stop for image in self._images],
            self._image_keys,
            opening_id=opening_id,
            longest=max_chunk,
            namespace=weights + str(max_chunk).encode(),
        )
        self._num_cached_chunks = 0
        # A weak reference, because a cycle would keep the row in memory, 60 KB and more per token, until the garbage
        # collector runs.
        self._steps = type(self)._run(weakref.proxy(self))

    @property
    def num_reused(self) -> int:
        """The number of prompt tokens that were copied from the prefix cache; 0 before the first step."""
        return self._chunks[self._num_cached_chunks - 1].stop if self._num_cached_chunks else 0

    @property
    def num_left(self) -> int:
        """The number of prompt tokens left to prefill. Before the first step it is an estimate by the cache."""
        (read,) = self._row.lengths
        known = self._reuse.prefix.num_known(self._chunks) if self._reuse is not None and not read else 0
        return len(self._sample) - max(read, known)

    def step(self) -> Tensor | None:
        """Do the next piece of work: one encoder pass or one chunk of the prompt.

        Return the float32 logits [V] after the last chunk, and None before that. Call it in inference mode.
        """
        return next(self._steps)

    def finish(self) -> Tensor:
        """Do all remaining work and return the logits [V]."""
        while (logits_V := self.step()) is None:
            pass
        return logits_V

    def _run(self) -> Iterator[Tensor | None]:
        encoded: dict[int, Tensor] = {}
        state_D: Tensor | None = None
        if self._reuse is not None:
            # Look up as late as possible: another request may have stored the same prefix in the meantime.
            self._num_cached_chunks, state_D = self._reuse.prefix.restore(self._chunks, self._row)
        for number, part in enumerate(self._chunks[self._num_cached_chunks :], self._num_cached_chunks):
            wanted = self._images_in(part)
            for index in wanted:
                if index not in encoded:
                    for tokens_TD in _encode(self._runner, self._images[index], self._image_keys[index], self._reuse):
                        if tokens_TD is not None:
                            encoded[index] = tokens_TD
                        yield None
            embeds_1SD = self._embed(part, [(self._images[i], encoded[i]) for i in wanted])
            state_D = self._runner.prefill(embeds_1SD, self._row)
            if self._reuse is not None:
                self._reuse.prefix.store(self._chunks[: number + 1], self._row, state_D)
            if part is not self._chunks[-1]:
                yield None
        assert state_D is not None, "a prompt has at least one token"
        yield self._runner.logits(state_D)

    def _images_in(self, part: PrefillChunk) -> list[int]:
        """Return the indices of the images that have a visual token in the chunk."""
        first, stop = self._visual_range(part)
        return [i for i, image in enumerate(self._images) if image.first < stop and first < image.stop]

    def _visual_range(self, part: PrefillChunk) -> tuple[int, int]:
        mask = self._sample.image_mask
        first = int(mask[: part.start].sum())
        return first, first + int(mask[part.start : part.stop].sum())

    def _embed(self, part: PrefillChunk, images: list[tuple[TiledImage, Tensor]]) -> Tensor:
        model, sample, span = self._runner.model, self._sample, slice(part.start, part.stop)
        ids_1S, mask_1S = (t[span].to(model.device).unsqueeze(0) for t in (sample.input_ids, sample.image_mask))
        if not images:
            return model.embed(ids_1S, mask_1S, None)
        first, stop = self._visual_range(part)
        offset = images[0][0].first
        visual_TD = torch.cat([tokens_TD for _, tokens_TD in images])[first - offset : stop - offset]
        return model.embed(ids_1S, mask_1S, visual_TD)


def _encode(runner: Runner, image: TiledImage, key: bytes, reuse: Reuse | None) -> Iterator[Tensor | None]:
    """Yield None after each encoder pass except the last, then the visual tokens. If they are cached, no pass runs."""
    known = reuse.encoder.get(key) if reuse is not None else None
    if known is not None:
        yield known
        return
    for tokens_TD in encode_image(runner, image):
        if tokens_TD is not None and reuse is not None:
            reuse.encoder.put(key, tokens_TD)
        yield tokens_TD


def prefill(runner: Runner, embeds_1SD: Tensor, row: Cache, chunk: int | None = None) -> Tensor:
    """Prefill an embedded prompt into an empty one-row cache and return the logits of its last position, [V].

    It uses no cache of earlier requests; a test compares `Prefill` with it. `chunk` is the number of positions in a
    pass; None means all.
    """
    state_D = embeds_1SD
    for part in embeds_1SD.split(chunk or embeds_1SD.shape[1], dim=1):
        state_D = runner.prefill(part, row)
    return runner.logits(state_D)
