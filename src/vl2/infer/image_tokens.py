"""Encode images into the visual tokens of the prompt, and cache these tokens by the image's content.

Each image is encoded separately, so its tokens do not depend on the rest of the request: cached tokens equal computed
ones bit for bit. The key of an image is a hash of its tiles and its grid, never its name or URL.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import torch
from torch import Tensor

from vl2.checkpoint.memory_plan import DEFAULT_ENCODER_BYTES, tiles_per_pass
from vl2.grid import Grid, ImageLayout
from vl2.infer.byte_lru import ByteLRU
from vl2.process.sample import Sample
from vl2.runtime import Runner


@dataclass(frozen=True, kw_only=True)
class TiledImage:
    """One image of a sample: its pixels, and the range of its visual tokens among those of all images."""

    tiles: Tensor  # float32 [n, 3, P, P]
    overviews: Tensor | None  # float32 [1, 3, B, B]; None where the overview is one of the tiles
    grid: Grid
    layout: ImageLayout
    first: int  # its visual tokens are first : stop of the sample's visual tokens
    stop: int

    def key(self) -> bytes:
        """Return a hash of everything that the encoder reads."""
        views = [stack for stack in (self.tiles, self.overviews) if stack is not None]
        content = blake2b(repr((self.grid, *(tuple(stack.shape) for stack in views))).encode(), digest_size=16)
        # Hash the tiles in parallel threads: hashing, about 1 GB/s in one thread, releases the interpreter lock.
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            for digest in threads.map(_hash, chain.from_iterable(views)):
                content.update(digest)
        return content.digest()


def _hash(tile_3PP: Tensor) -> bytes:
    return blake2b(tile_3PP.contiguous().numpy().data).digest()


def images_of(sample: Sample) -> list[TiledImage]:
    """Return the images of a sample in order."""
    images, first_tile, first_overview, first_token = [], 0, 0, 0
    layout = sample.layout
    for grid in sample.grid_list:
        tiles = sample.tiles[first_tile : first_tile + layout.num_tiles(grid)]
        num_overviews, overviews = layout.num_overviews(grid), None
        if sample.overviews is not None:
            overviews = sample.overviews[first_overview : first_overview + num_overviews]
        stop = first_token + layout.num_tokens(grid)
        images.append(
            TiledImage(tiles=tiles, overviews=overviews, grid=grid, layout=layout, first=first_token, stop=stop)
        )
        first_tile, first_overview, first_token = first_tile + len(tiles), first_overview + num_overviews, stop
    return images


class EncoderCache:
    """Visual tokens of images encoded before, keyed by the hash of their content, up to a limit in bytes."""

    def __init__(self, max_bytes: int = DEFAULT_ENCODER_BYTES) -> None:
        self._store: ByteLRU[Tensor] = ByteLRU(max_bytes)
        self.hits = 0
        self.misses = 0

    @property
    def max_bytes(self) -> int:
        return self._store.max_bytes

    @property
    def nbytes(self) -> int:
        return self._store.nbytes

    def get(self, key: bytes) -> Tensor | None:
        """Return the arranged visual tokens [tokens, D] of an image, or None. Count a hit or a miss."""
        tokens_TD = self._store.get(key)
        if tokens_TD is None:
            self.misses += 1
        else:
            self.hits += 1
        return tokens_TD

    def put(self, key: bytes, tokens_TD: Tensor) -> None:
        self._store.put(key, tokens_TD, tokens_TD.numel() * tokens_TD.element_size())

    def clear(self) -> None:
        self._store.clear()


def encode_image(runner: Runner, image: TiledImage) -> Iterator[Tensor | None]:
    """Yield None after each encoder pass except the last, then the image's arranged visual tokens [tokens, D]."""
    model = runner.model
    passes = [
        views
        for stack in (image.overviews, image.tiles)
        if stack is not None and len(stack)
        for views in stack.split(tiles_per_pass(model.config, model.device, stack.shape[-1]))
    ]
    parts: list[Tensor] = []
    for views in passes:
        if parts:
            yield None
        parts.append(runner.encode(views.to(model.device)).flatten(0, 1))
    yield model.arrange_image(torch.cat(parts), image.grid, image.layout)


def encode_images(runner: Runner, sample: Sample) -> Tensor | None:
    """Return the visual tokens of a sample in the order of its slots, [tokens, D], or None if it has no images."""
    encoded = [step for image in images_of(sample) for step in encode_image(runner, image) if step is not None]
    return torch.cat(encoded) if encoded else None


def embed_prompt(runner: Runner, sample: Sample) -> Tensor:
    """Return the embedded prompt with the visual tokens in their slots, [1, S, D]."""
    model = runner.model
    ids, mask = (t.to(model.device).unsqueeze(0) for t in (sample.input_ids, sample.image_mask))
    return model.embed(ids, mask, encode_images(runner, sample))
