"""Convert messages to a sample: open the images, choose their grids, cut their tiles, write the tokens.

Golden: tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.grid import Grid
from vl2.model_kind import ModelKind, answer_window, model_kind
from vl2.process.chat_template import TokenRow, tokenize_prompt, tokenize_turns
from vl2.process.conversation import ImageRef, Turn
from vl2.process.cutter import Cutter, make_cutter
from vl2.process.image import ImageOptions, ImageSource, open_image
from vl2.process.messages import released_prompt, to_turns
from vl2.process.pixels import CutImage, cut, normalize_pixels
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.sample import Sample
from vl2.process.tiling import Size, Tiling
from vl2.process.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """The images of one conversation: their normalized views, and the number of visual tokens of each image."""

    tiles: Tensor  # float32 [I, 3, P, P]
    overviews: Tensor | None  # float32 [J, 3, B, B]; None if the overviews are tiles
    grids: list[Grid]
    sizes: tuple[Size, ...]
    tokens: list[int]  # visual tokens of each image


@dataclass(frozen=True)
class Processor:
    """Everything between messages and the model, as one value without state."""

    tokenizer: Tokenizer
    config: PreprocessConfig
    tiling: Tiling = field(default_factory=Tiling)
    image_options: ImageOptions = field(default_factory=ImageOptions)
    max_tiles: int | None = None  # allow all canvases of at most this many tiles instead of the config's (InfoVQA: 18)
    max_tokens: int | None = None  # texts that certainly have more tokens are refused before any other work
    character_level: frozenset[str] = frozenset()  # categories whose answers are character-level targets in training
    kind: ModelKind = "DeepSeek-VL2"  # the model that the processor prepares samples for
    answer_window: int | None = None  # tokens of an answer that the model sees beside the prompt; None: all

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            raise UserError(f"max_tiles must be at least 1, got {self.max_tiles}")
        self.cutter  # noqa: B018 - refuses a rule that the model does not have

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        tiling: Tiling | None = None,
        image_options: ImageOptions | None = None,
        max_tiles: int | None = None,
    ) -> Processor:
        """Read tokenizer.json and processor_config.json of a checkpoint folder. Its config.json names the model."""
        folder = Path(folder)
        values = _config_values(folder)
        kind = model_kind(values)
        config = PreprocessConfig.from_file(folder / "processor_config.json")
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json", config.pad_token, has_roles=kind == "DeepSeek-VL2")
        return cls(
            tokenizer,
            config,
            tiling or Tiling(),
            image_options or ImageOptions(),
            max_tiles,
            kind=kind,
            answer_window=None if kind == "DeepSeek-VL2" else answer_window(values),
        )

    def with_tiling(self, tiling: Tiling | str, max_tiles: int | None = None) -> Processor:
        """Return the same processor with another tiling rule, and with another `max_tiles` if one is given."""
        tiling = Tiling.parse(tiling) if isinstance(tiling, str) else tiling
        return replace(self, tiling=tiling, max_tiles=self.max_tiles if max_tiles is None else max_tiles)

    def with_image_options(self, image_options: ImageOptions) -> Processor:
        return replace(self, image_options=image_options)

    def check_length(self, texts: Iterable[str]) -> None:
        """Raise TextTooLong if the texts of a conversation certainly exceed `max_tokens`.

        Texts that pass this quick check may still be too long.
        """
        if self.max_tokens is not None:
            self.tokenizer.check_length(texts, self.max_tokens)

    def check_answers(self, row: TokenRow) -> None:
        """Raise UserError for a conversation with which a model with a window over its answers cannot be trained.

        When such a model answers, it forgets the beginning of the answer that it writes, and sees earlier answers in
        full. One forward pass can be both only for an earlier answer that fits into the window.
        """
        window = self.answer_window
        for number, (start, stop) in enumerate(row.answers[:-1], 1):
            if window is not None and stop - start > window:
                raise UserError(
                    f"answer {number} of {len(row.answers)} has {stop - start} tokens, and {self.kind} sees the last "
                    f"{window} of an answer that it writes: only the last answer of a record may be longer"
                )

    @cached_property
    def cutter(self) -> Cutter:
        """The model's rules for cutting images into views."""
        return make_cutter(self.kind, self.config, self.tiling, self.max_tiles)

    def encode(
        self,
        messages: object,
        *,
        train: bool = False,
        mask_prompt: bool = True,
        spells_answers: bool = False,
        name: str = "",
        prepared: PreparedImages | None = None,
    ) -> Sample:
        """Return the sample of a conversation, given as turns or as messages in the OpenAI or the released form.

        With `train` every answer ends with eos; otherwise the last turn is left open. With `mask_prompt` only answers
        (and bos) are labeled, otherwise all text is. The text of a document is always labeled. With `spells_answers`
        answers are encoded character by character. If `prepared` is given, the images are not opened again.
        """
        turns = to_turns(messages)
        self.check_length(turn.text for turn in turns)
        prepared = prepared or self.prepare_images([turn.images for turn in turns])
        row = tokenize_turns(
            turns,
            self.tokenizer,
            prepared.tokens,
            train=train,
            mask_prompt=mask_prompt,
            spells_answers=spells_answers,
        )
        if train:
            self.check_answers(row)
        return self._sample(row, prepared, name)

    def encode_prompt(
        self,
        text: str,
        images: Sequence[ImageSource] = (),
        *,
        apply_template: bool = False,
        train: bool = False,
        name: str = "",
        prepared: PreparedImages | None = None,
    ) -> Sample:
        """Return the sample of a raw prompt, in which each `<image>` stands for the next image. All text is labeled.

        With `apply_template` the prompt is the only user turn of a conversation. If `prepared` is given, the images are
        not opened again.
        """
        pieces = released_prompt(text, images)
        self.check_length(piece for piece in pieces if isinstance(piece, str))
        if apply_template:
            turn = Turn(role="user", pieces=pieces, is_released=True)
            return self.encode([turn], train=train, mask_prompt=False, name=name, prepared=prepared)
        sources = [piece.source for piece in pieces if isinstance(piece, ImageRef)]
        prepared = prepared or self.prepare_images([sources])
        return self._sample(tokenize_prompt(pieces, self.tokenizer, prepared.tokens, train=train), prepared, name)

    def image_places(self, ids: Sequence[int], images: Sequence[ImageSource]) -> list[int]:
        """Return the positions of `<image>` in token ids.

        Raise UserError for an unknown id, or if there are more or fewer positions than images.
        """
        unknown = next((token_id for token_id in ids if token_id not in self.tokenizer), None)
        if unknown is not None:
            raise UserError(f"there is no token {unknown}; the ids are below {self.tokenizer.num_ids}")
        places = [place for place, token_id in enumerate(ids) if token_id == self.tokenizer.image_id]
        if len(places) != len(images):
            raise UserError(f"the prompt: {len(places)} <image> in the token ids, but {len(images)} images")
        return places

    def encode_ids(
        self,
        ids: Sequence[int],
        images: Sequence[ImageSource] = (),
        *,
        name: str = "",
        prepared: PreparedImages | None = None,
    ) -> Sample:
        """Return the sample of a raw prompt of token ids, in which each id of `<image>` stands for the next image.

        Raise UserError as `image_places` does. If `prepared` is given, the images are not opened again.
        """
        places = self.image_places(ids, images)
        prepared = prepared or self.prepare_images([images])
        row = TokenRow()
        start = 0
        for place, num_tokens in zip(places, prepared.tokens, strict=True):
            row.add(ids[start:place], is_trained=True)
            row.add_image(self.tokenizer.image_id, num_tokens)
            start = place + 1
        row.add(ids[start:], is_trained=True)
        return self._sample(row, prepared, name)

    def prepare_images(self, sources: Sequence[Sequence[ImageSource]]) -> PreparedImages:
        """Open, cut and normalize the images of each message."""
        opened = [[open_image(source, self.image_options) for source in message] for message in sources]
        grids = self.choose_grids([[image.size for image in message] for message in opened])
        flat = [image for message in opened for image in message]
        views = [
            cut(image, self.cutter.plan(grid), self.config.padding_color)
            for image, grid in zip(flat, grids, strict=True)
        ]
        return self.prepare_views(views, grids, [image.size for image in flat])

    def choose_grids(self, sizes: Sequence[Sequence[Size]]) -> list[Grid]:
        """Return one grid per image, in order, given the sizes of each message's images."""
        return self.cutter.choose_grids(sizes)

    def prepare_views(self, images: Sequence[CutImage], grids: list[Grid], sizes: Sequence[Size]) -> PreparedImages:
        """Normalize images that have been cut already. `sizes` are those of the images before cutting."""
        layout = self.cutter.layout
        overviews = [image.overviews for image in images if len(image.overviews)]
        return PreparedImages(
            tiles=self._normalized([image.tiles for image in images if len(image.tiles)]),
            overviews=self._normalized(overviews) if overviews else None,
            grids=grids,
            sizes=tuple(sizes),
            tokens=[layout.num_tokens(grid) for grid in grids],
        )

    def _normalized(self, stacks: Sequence[np.ndarray]) -> Tensor:
        px = self.cutter.tile_px
        pixels = np.concatenate(stacks) if stacks else np.zeros((0, px, px, 3), np.uint8)
        return normalize_pixels(pixels, *self._scales)

    @property
    def _scales(self) -> tuple[Sequence[float], Sequence[float]]:
        config = self.config
        return (config.image_mean, config.image_std) if config.normalize else ((0.0,) * 3, (1.0,) * 3)

    def _sample(self, row: TokenRow, images: PreparedImages, name: str) -> Sample:
        return Sample(
            input_ids=torch.tensor(row.ids, dtype=torch.int64),
            labels=torch.tensor(row.labels, dtype=torch.int64),
            image_mask=torch.tensor(row.image_mask, dtype=torch.bool),
            tiles=images.tiles,
            overviews=images.overviews,
            grids=torch.tensor(images.grids, dtype=torch.int64).view(-1, 2),
            image_sizes=images.sizes,
            layout=self.cutter.layout,
            pad_id=self.tokenizer.pad_id,
            answers=tuple(row.answers),
            name=name,
        )


def kind_of_folder(folder: Path) -> ModelKind:
    """Return which model the checkpoint in a folder is. A folder without config.json is taken for DeepSeek-VL2."""
    return model_kind(_config_values(folder))


def _config_values(folder: Path) -> dict[str, Any]:
    """Return the keys of config.json. They are none if it cannot be read: loading the model then reports the error."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
