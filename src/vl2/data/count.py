"""What a record costs in tokens and tiles, from the stated sizes of its images: none is opened.

Held by a test that the counts are those of `Processor.encode`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vl2.data.record import Record
from vl2.grid import Grid, num_tiles, num_visual_tokens
from vl2.process.chat_template import tokenize_turns
from vl2.process.conversation import arrange
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Tokens of one record, and how each of its images is cut."""

    text: int  # tokens that are not visual
    trained: int  # tokens that something is trained to predict: the bos has a label, but nothing before it
    visual: int
    grids: tuple[Grid, ...]

    @property
    def total(self) -> int:
        return self.text + self.visual

    @property
    def tiles(self) -> int:
        """Tiles that the vision encoder reads, global views among them."""
        return sum(num_tiles(grid) for grid in self.grids)

    @classmethod
    def of_sample(cls, sample: Sample) -> TokenCounts:
        """Count a sample that was encoded for training."""
        visual = int(sample.image_mask.sum())
        return cls(
            text=len(sample) - visual,
            trained=int((sample.labels[1:] != IGNORE_ID).sum()),
            visual=visual,
            grids=tuple(sample.grid_list),
        )


def count_tokens(record: Record, processor: Processor, *, mask_prompt: bool = True) -> TokenCounts:
    """Count what `Processor.encode(train=True)` will make of the record. UserError if it cannot be a sample."""
    # The images are stood for by empty bytes, which nothing opens here.
    turns = arrange(record.to_turns([b""] * len(record.images)))
    sizes = iter([(image.width, image.height) for image in record.images])
    per_turn = [[next(sizes) for _ in turn.images] for turn in turns]
    config = processor.config
    side = config.tokens_per_side
    grids = processor.tiling.choose_grids(per_turn, processor.canvases, tile_px=config.tile_px, side=side)
    visual = [num_visual_tokens(grid, side) for grid in grids]
    row = tokenize_turns(
        turns,
        processor.tokenizer,
        visual,
        train=True,
        mask_prompt=mask_prompt,
        spells_answers=record.category in processor.character_level,
    )
    return TokenCounts(
        text=len(row.ids) - sum(visual),
        trained=sum(label != IGNORE_ID for label in row.labels[1:]),
        visual=sum(visual),
        grids=tuple(grids),
    )
