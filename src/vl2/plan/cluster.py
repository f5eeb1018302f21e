"""The inputs of a plan: the cluster, and the distribution of the training data.

Rates are bytes and operations per second; bandwidths are in one direction. The efficiencies are assumptions about
kernels only: bubbles, communication and uneven loads are simulated in addition.

The data's distribution comes from the output of `vl2 data stats --json`. Without one it is an assumed mix of common
image sizes (photos, charts, screens, pages, lines of text), tiled as the processor tiles them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vl2.config import ModelConfig
from vl2.data.index import Ints
from vl2.data.mixture import TEXT_SHARE
from vl2.data.pack import Packing, make_packs
from vl2.errors import UserError
from vl2.grid import Grid, num_tiles, num_visual_tokens

MAX_GPUS = 100_000  # with more, the search would take hours


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster of identical machines with identical GPUs."""

    num_gpus: int
    gpus_per_node: int = 8
    memory_bytes: float
    peak_flops: float  # dense bfloat16
    node_bandwidth: float  # per GPU, between the GPUs of one machine
    network_bandwidth: float  # per machine, between machines
    latency_s: float = 10e-6  # of one message
    value_bytes: int = 2  # bytes of a gathered weight or an activation (bfloat16)
    dense_efficiency: float = 0.45  # share of peak_flops in encoder, projector, attention, head
    expert_efficiency: float = 0.35  # share of peak_flops in the grouped matrix products of experts
    weights_efficiency: float = 1.0  # share of the bandwidth for weights and gradients, with the time of their copies
    overlap: float = 0.5  # share of the communication of weights that overlaps with computation

    def __post_init__(self) -> None:
        if not (1 <= self.num_gpus <= MAX_GPUS and self.gpus_per_node >= 1):
            raise UserError(
                f"a cluster has 1 to {MAX_GPUS:,} GPUs, got {self.num_gpus} in machines of {self.gpus_per_node}"
            )
        for name in ("memory_bytes", "peak_flops", "node_bandwidth", "network_bandwidth", "weights_efficiency"):
            if getattr(self, name) <= 0:
                raise UserError(
                    f"{name.replace('_', ' ')} of the cluster must be positive, got {getattr(self, name):g}"
                )
        for name in ("dense_efficiency", "expert_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name.replace('_', ' ')} must be in 0..1, got {getattr(self, name):g}")
        if not 0 <= self.overlap <= 1:
            raise UserError(f"overlap must be in 0..1, got {self.overlap:g}")

    def bandwidth(self, num_ranks: int) -> float:
        """Return the bandwidth of one GPU when `num_ranks` neighboring ranks communicate with one another."""
        if num_ranks <= self.gpus_per_node:
            return self.node_bandwidth
        return min(self.node_bandwidth, self.network_bandwidth / self.gpus_per_node)


@dataclass(frozen=True, kw_only=True)
class Device:
    """A type of GPU in the machine it usually comes in. The values are from the manufacturers' data sheets."""

    memory_bytes: float
    peak_flops: float
    node_bandwidth: float
    network_bandwidth: float


DEVICES: Mapping[str, Device] = {
    # a100-pcie: machines with one 200 Gb/s adapter. The others have NVLink, and a 200 or 400 Gb/s adapter per GPU.
    "a100-pcie": Device(memory_bytes=40e9, peak_flops=312e12, node_bandwidth=24e9, network_bandwidth=25e9),
    "a100": Device(memory_bytes=80e9, peak_flops=312e12, node_bandwidth=300e9, network_bandwidth=200e9),
    "h100": Device(memory_bytes=80e9, peak_flops=989e12, node_bandwidth=450e9, network_bandwidth=400e9),
    "h200": Device(memory_bytes=141e9, peak_flops=989e12, node_bandwidth=450e9, network_bandwidth=400e9),
}


# Assumed shares of grids of local tiles (columns, rows), for tiles of 384 px.
_COMMON_GRIDS: Mapping[Grid, float] = {
    (1, 1): 0.22,  # icons, crops, short lines
    (2, 1): 0.20,  # photos of 640 x 480 and the like
    (1, 2): 0.12,
    (2, 2): 0.10,
    (3, 2): 0.10,  # 1024 x 768, charts
    (2, 3): 0.08,
    (3, 1): 0.05,  # lines of text
    (4, 2): 0.05,  # screens
    (3, 3): 0.05,
    (2, 4): 0.02,
    (1, 1 + 3): 0.01,
}
_TEXT_OF_IMAGE, _TEXT_DOCUMENT = 180.0, 900.0  # mean text tokens per image, and of a document without images
_SPREAD = 0.8  # standard deviation of the logarithm of a text's length


@dataclass(frozen=True, kw_only=True)
class DataProfile:
    """The distribution of training records."""

    tiles_per_image: Mapping[int, float]  # number of tiles -> relative frequency
    text_of_image: float  # mean text tokens per image
    text_document: float  # mean tokens of a record without images
    text_share: float  # share of all tokens that are in records without images

    def __post_init__(self) -> None:
        if not self.tiles_per_image or min(self.tiles_per_image) < 1 or min(self.tiles_per_image.values()) < 0:
            raise UserError("a data profile needs the tiles of images, each at least 1, with their counts")
        if not 0 <= self.text_share < 1:
            raise UserError(f"the share of text alone must be in 0..1, below 1, got {self.text_share:g}")

    @classmethod
    def common(cls) -> DataProfile:
        """Return the assumed mix of common image sizes."""
        tiles: dict[int, float] = {}
        for grid, share in _COMMON_GRIDS.items():
            tiles[num_tiles(grid)] = tiles.get(num_tiles(grid), 0.0) + share
        return cls(
            tiles_per_image=tiles, text_of_image=_TEXT_OF_IMAGE, text_document=_TEXT_DOCUMENT, text_share=TEXT_SHARE
        )

    @classmethod
    def read(cls, path: Path) -> DataProfile:
        """Read the output of `vl2 data stats --json`. Raise UserError if the file is something else."""
        try:
            stats: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            tiles = {int(number): float(images) for number, images in stats["tiles_per_image"].items()}
            total, text = stats["total"], stats["by_category"].get("text", {"records": 0, "tokens": 0})
            images = max(int(total["images"]), 1)
            return cls(
                tiles_per_image=tiles,
                text_of_image=(total["text_tokens"] - text["tokens"]) / images,
                text_document=text["tokens"] / text["records"] if text["records"] else _TEXT_DOCUMENT,
                text_share=text["tokens"] / max(total["tokens"], 1),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not the output of `vl2 data stats --json`: {error}") from None

    def document_length(self, config: ModelConfig) -> float:
        """Return the mean document length in tokens, averaged over tokens rather than documents."""
        shares = sum(self.tiles_per_image.values())
        visual = sum(self._visual_tokens(n, config) * share for n, share in self.tiles_per_image.items()) / shares
        return self.text_share * self.text_document + (1 - self.text_share) * (visual + self.text_of_image)

    def draw_packs(self, config: ModelConfig, packing: Packing, num_packs: int, seed: int) -> tuple[Ints, Ints]:
        """Draw random records, pack them as the data loader does, and return the tokens and tiles of each pack."""
        random = np.random.default_rng(seed)
        tokens, tiles = [], []
        drawn, wanted = 0, num_packs * (packing.seq_len if packing.is_packed else 1)
        numbers = np.array(sorted(self.tiles_per_image))
        shares = np.array([self.tiles_per_image[number] for number in numbers], dtype=float)
        per_image = {number: self._visual_tokens(int(number), config) for number in numbers.tolist()}
        mean_image = float(sum(per_image[n] * s for n, s in zip(numbers.tolist(), shares, strict=True)) / shares.sum())
        of_text = self.text_share / self.text_document
        of_image = (1 - self.text_share) / (mean_image + self.text_of_image)
        while drawn < wanted:
            is_text = random.random() < of_text / (of_text + of_image)
            mean = self.text_document if is_text else self.text_of_image
            length = int(mean * random.lognormal(-(_SPREAD**2) / 2, _SPREAD)) + 1
            count = 0 if is_text else int(random.choice(numbers, p=shares / shares.sum()))
            size = min(length + (per_image[count] if count else 0), packing.seq_len)
            tokens.append(size)
            tiles.append(count)
            drawn += size if packing.is_packed else 1
        token_counts, tile_counts = np.array(tokens, dtype=np.int64), np.array(tiles, dtype=np.int64)
        packs = make_packs(token_counts, tile_counts, packing)
        order = random.permutation(len(packs))[:num_packs]
        return (
            np.array([token_counts[packs[i]].sum() for i in order], dtype=np.int64),
            np.array([tile_counts[packs[i]].sum() for i in order], dtype=np.int64),
        )

    @staticmethod
    def _visual_tokens(count: int, config: ModelConfig) -> int:
        """Return the visual tokens of an image of `count` tiles, in the grid closest to a square."""
        local = max(count - 1, 1)
        columns = max(side for side in range(1, local + 1) if local % side == 0 and side * side <= local)
        return num_visual_tokens((columns, local // columns), config.tokens_per_side)
