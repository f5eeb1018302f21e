"""Random packs of a model's vocabulary and tile size, and the same documents as rows of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vl2.batch import Batch
from vl2.config import ModelConfig
from vl2.data.pack import Packed
from vl2.grid import Grid, num_tiles, num_visual_tokens

Document = tuple[int, Grid | None]  # tokens of text, of which the first half is not trained; the grid of its image


def random_pack(
    config: ModelConfig,
    documents: Sequence[Document],
    *,
    seed: int = 0,
    num_padding: int = 0,
    category: str = "ocr",
) -> Packed:
    """Return documents, each a begin token, its image and its text."""
    generator = torch.Generator().manual_seed(seed)
    side, tile_px = config.tokens_per_side, config.vision_config.image_size
    ids, labels, masks, lengths = [], [], [], []
    grids = [grid for _, grid in documents if grid is not None]
    for num_text, grid in documents:
        num_visual = 0 if grid is None else num_visual_tokens(grid, side)
        length = 1 + num_visual + num_text
        tokens = torch.randint(config.language_config.vocab_size, (length,), generator=generator)
        mask = torch.zeros(length, dtype=torch.bool)
        mask[1 : 1 + num_visual] = True
        label = tokens.masked_fill(mask, -100)
        label[: 1 + num_visual + num_text // 2] = -100
        ids.append(tokens)
        labels.append(label)
        masks.append(mask)
        lengths.append(length)
    if num_padding:
        ids.append(torch.zeros(num_padding, dtype=torch.int64))
        labels.append(torch.full((num_padding,), -100))
        masks.append(torch.zeros(num_padding, dtype=torch.bool))
    borders = [*lengths, num_padding] if num_padding else lengths
    return Packed(
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        position_ids=torch.cat([torch.arange(n) for n in borders]),
        cu_seqlens=torch.tensor([0, *borders]).cumsum(0).to(torch.int32),
        image_mask=torch.cat(masks),
        tiles=torch.randn(sum(map(num_tiles, grids)), 3, tile_px, tile_px, generator=generator),
        grids=torch.tensor(grids, dtype=torch.int64).view(-1, 2),
        layout=config.layout(side, side),
        num_tokens=sum(lengths),
        max_seqlen=max(borders),
        names=tuple(f"document {i}" for i in range(len(documents))),
        categories=(category,) * len(documents),
    )


def join(packs: Sequence[Packed]) -> Packed:
    """Return the documents of several packs without padding as one pack."""
    lengths = torch.cat([pack.cu_seqlens.diff() for pack in packs])
    together = ("input_ids", "labels", "position_ids", "image_mask", "tiles", "grids")
    return replace(
        packs[0],
        **{name: torch.cat([getattr(pack, name) for pack in packs]) for name in together},
        cu_seqlens=torch.cat((lengths.new_zeros(1), lengths.cumsum(0).to(torch.int32))),
        num_tokens=sum(pack.num_tokens for pack in packs),
        max_seqlen=max(pack.max_seqlen for pack in packs),
        names=tuple(name for pack in packs for name in pack.names),
        categories=tuple(category for pack in packs for category in pack.categories),
        notes=tuple(note for pack in packs for note in pack.notes),
    )


def single_rows(pack: Packed) -> list[Batch]:
    """Return each document of a pack as a batch of one row."""
    rows, first_image, first_tile = [], 0, 0
    for k in range(len(pack.names)):
        place = slice(int(pack.cu_seqlens[k]), int(pack.cu_seqlens[k + 1]))
        num_slots, last_image = int(pack.image_mask[place].sum()), first_image
        while num_slots:
            columns, lines = pack.grids[last_image].tolist()
            num_slots -= pack.layout.num_tokens((columns, lines))
            last_image += 1
        grids = pack.grids[first_image:last_image]
        last_tile = first_tile + sum(num_tiles((columns, lines)) for columns, lines in grids.tolist())
        ids = pack.input_ids[place].unsqueeze(0)
        rows.append(
            Batch(
                input_ids=ids,
                labels=pack.labels[place].unsqueeze(0),
                attention_mask=torch.ones_like(ids, dtype=torch.bool),
                image_mask=pack.image_mask[place].unsqueeze(0),
                tiles=pack.tiles[first_tile:last_tile],
                grids=grids,
            )
        )
        first_image, first_tile = last_image, last_tile
    return rows
