"""Count the tokens and tiles of records, and keep the counts of a whole store in an index file.

The mixture and the packing work from these counts alone. No image is decoded: the grids follow from the image sizes
that a record states, which are the sizes of the upright image. If the loader finds that a record encodes to another
length, it reports that record and leaves it out (see `loader.py`). A test checks that the counts equal those of
`Processor.encode`.

Arrays have one entry for each of N records. Counts are of whole samples, visual tokens included. Every rank holds the
arrays of all records, so they have the narrowest types that are safe: docs/scale.md says what a record costs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vl2.data.ray_map import map_in_order
from vl2.data.record import CATEGORIES, Record
from vl2.errors import UserError
from vl2.grid import Grid, ImageLayout
from vl2.process.chat_template import tokenize_turns
from vl2.process.conversation import arrange
from vl2.process.processor import Processor
from vl2.process.sample import IGNORE_ID, Sample


@dataclass(frozen=True, kw_only=True)
class TokenCounts:
    """Token counts of one record, and the tile grid of each of its images."""

    text: int  # tokens that are not visual
    trained: int  # labels in the loss; the first label is not one, because no token precedes it to predict it
    visual: int
    grids: tuple[Grid, ...]
    tiles_per_image: tuple[int, ...]  # views that the vision encoder reads, global views included

    @property
    def total(self) -> int:
        return self.text + self.visual

    @property
    def tiles(self) -> int:
        """The number of views that the vision encoder reads of all images."""
        return sum(self.tiles_per_image)

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(
            text=self.text + other.text,
            trained=self.trained + other.trained,
            visual=self.visual + other.visual,
            grids=self.grids + other.grids,
            tiles_per_image=self.tiles_per_image + other.tiles_per_image,
        )

    @classmethod
    def of_sample(cls, sample: Sample) -> TokenCounts:
        """Count a sample that was encoded for training."""
        visual = int(sample.image_mask.sum())
        return cls(
            text=len(sample) - visual,
            trained=int((sample.labels[1:] != IGNORE_ID).sum()),
            visual=visual,
            grids=tuple(sample.grid_list),
            tiles_per_image=_views(sample.grid_list, sample.layout),
        )


def _views(grids: Sequence[Grid], layout: ImageLayout) -> tuple[int, ...]:
    return tuple(layout.num_tiles(grid) + layout.num_overviews(grid) for grid in grids)


def count_tokens(
    record: Record, processor: Processor, *, mask_prompt: bool = True, is_pair: bool = False
) -> TokenCounts:
    """Count the tokens that `Processor.encode(train=True)` makes of the record, without decoding its images.

    With `is_pair`, count the conversation with the chosen and that with the rejected answer. Raise UserError if the
    record cannot be encoded, or is to be a pair and is none.
    """
    if is_pair:
        both = (replace(record, rejected=""), record.with_rejected())
        chosen, rejected = (count_tokens(one, processor, mask_prompt=mask_prompt) for one in both)
        return chosen + rejected
    # Empty bytes stand in for the images, because only their sizes are needed here.
    turns = arrange(record.to_turns([b""] * len(record.images)))
    sizes = iter([(image.width, image.height) for image in record.images])
    per_turn = [[next(sizes) for _ in turn.images] for turn in turns]
    grids = processor.choose_grids(per_turn)
    visual = [processor.cutter.layout.num_tokens(grid) for grid in grids]
    row = tokenize_turns(
        turns,
        processor.tokenizer,
        visual,
        train=True,
        mask_prompt=mask_prompt,
        spells_answers=record.category in processor.character_level,
    )
    processor.check_answers(row)
    return TokenCounts(
        text=len(row.ids) - sum(visual),
        trained=sum(label != IGNORE_ID for label in row.labels[1:]),
        visual=sum(visual),
        grids=tuple(grids),
        tiles_per_image=_views(grids, processor.cutter.layout),
    )


Ints = NDArray[np.int64]
Counts = NDArray[np.integer[Any]]  # sums are of 64 bits: numpy widens them

_FORMAT = 2  # of the .npz file
_ARRAYS: dict[str, Any] = {
    "categories": np.uint8,
    "num_tokens": np.int32,
    "num_trained": np.int32,
    "num_tiles": np.int32,
}
# The token ids of this text distinguish vocabularies of the same size.
_PROBE = "The quick brown fox, 12,345.67 <|ref|>图片<|/ref|> naïve"


class RecordStore(Protocol):
    """Random access to records whose images are bytes, safe to read from several threads (see `store.open_random`)."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


@dataclass(frozen=True, kw_only=True)
class LostRecord:
    """A record that cannot be used, and the reason in one line."""

    source: str
    record: int  # its number in the store
    message: str


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceIndex:
    """The counts of all records of one category in one store; a mixture draws from such sources."""

    name: str  # of the store
    category: str
    records: Counts  # [N], numbers in the store
    num_tokens: Counts  # [N]
    num_trained: Counts  # [N]
    num_tiles: Counts  # [N]

    def __post_init__(self) -> None:
        if self.category not in CATEGORIES:
            raise UserError(f"category must be one of {', '.join(CATEGORIES)}, got {self.category!r}")
        lengths = {len(self.records), len(self.num_tokens), len(self.num_trained), len(self.num_tiles)}
        assert len(lengths) == 1, f"arrays of one source must have one length, got {sorted(lengths)}"
        assert not len(self) or int(self.num_tokens.min()) > 0, "a record without tokens has no share of a mixture"

    def __len__(self) -> int:
        return len(self.records)

    @property
    def key(self) -> str:
        return f"{self.name}/{self.category}"

    def is_fitting(self, seq_len: int) -> NDArray[np.bool_]:
        """Return a mask of the records that fit a sequence of `seq_len` tokens; samples are never truncated."""
        return self.num_tokens <= seq_len

    def take(self, chosen: NDArray[np.bool_]) -> SourceIndex:
        """Return an index of the chosen records only."""
        if chosen.all():
            return self
        return SourceIndex(
            name=self.name,
            category=self.category,
            records=self.records[chosen],
            num_tokens=self.num_tokens[chosen],
            num_trained=self.num_trained[chosen],
            num_tiles=self.num_tiles[chosen],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreIndex:
    """The counts of every record of a store, in the store's order.

    Unreadable records count 0 tokens and are listed in `problems`.
    """

    name: str
    settings: str  # checksum of everything besides the records that the counts depend on
    files: str = ""  # checksum of the files that hold the records; "" if unknown
    categories: Counts  # [N], positions in CATEGORIES
    num_tokens: Counts  # [N]
    num_trained: Counts  # [N]
    num_tiles: Counts  # [N]
    problems: tuple[LostRecord, ...] = ()

    def __len__(self) -> int:
        return len(self.categories)

    def sources(self) -> tuple[SourceIndex, ...]:
        """Return one source for each category in the store, in the order of CATEGORIES."""
        return tuple(self._sources())

    def _sources(self) -> Iterator[SourceIndex]:
        for number, category in enumerate(CATEGORIES):
            chosen = (self.categories == number) & (self.num_tokens > 0)
            if not chosen.any():
                continue
            places: Counts = np.flatnonzero(chosen)
            if len(self) < 2**31:
                places = places.astype(np.int32)
            own: Any = slice(None) if len(places) == len(self) else places  # all records are of one category: no copy
            yield SourceIndex(
                name=self.name,
                category=category,
                records=places,
                num_tokens=self.num_tokens[own],
                num_trained=self.num_trained[own],
                num_tiles=self.num_tiles[own],
            )

    def save(self, path: Path | str) -> None:
        """Write the index to one .npz file atomically. Raise UserError if that fails."""
        path = Path(path)
        problems = [[problem.record, problem.message] for problem in self.problems]
        about = {
            "format": _FORMAT,
            "name": self.name,
            "settings": self.settings,
            "files": self.files,
            "problems": problems,
        }
        arrays: dict[str, Any] = {name: getattr(self, name).astype(kind) for name, kind in _ARRAYS.items()}
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                # Not compressed: that halves the file, and takes longer than all the rest.
                np.savez(file, about=np.array(json.dumps(about)), **arrays)
            partial.replace(path)
        except OSError as error:
            raise UserError(f"cannot write the index {path}: {error.strerror}") from None

    @classmethod
    def load(
        cls,
        path: Path | str,
        processor: Processor,
        num_records: int,
        *,
        files: str = "",
        mask_prompt: bool = True,
        is_pairs: bool = False,
    ) -> StoreIndex:
        """Read an index.

        Raise UserError if it was built with other settings, from other files or for another number of records.
        """
        path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                about = json.loads(str(file["about"]))
                arrays: dict[str, Any] = {name: file[name].astype(kind, copy=False) for name, kind in _ARRAYS.items()}
            name, settings, version = about["name"], about["settings"], about["format"]
            counted = about.get("files")  # missing before format 2, which is refused below
            problems = tuple(LostRecord(source=name, record=r, message=m) for r, m in about["problems"])
        except FileNotFoundError:
            raise UserError(f"no index at {path}") from None
        except Exception as error:  # zip, numpy and JSON raise many exception types on damaged data
            raise UserError(f"{path} is not an index: {' '.join(str(error).split())[:120]}") from None
        expected = settings_checksum(processor, mask_prompt=mask_prompt, is_pairs=is_pairs)
        if version != _FORMAT or settings != expected:
            raise UserError(
                f"the index {path} was made by another version or with another tokenizer, tiling or tile size: "
                "build it again"
            )
        if files and counted != files:
            raise UserError(f"the files of {name} have changed since the index {path} was made: build it again")
        index = cls(name=name, settings=settings, files=counted, problems=problems, **arrays)
        if len(index) != num_records:
            raise UserError(f"the index {path} has {len(index)} records, the store {num_records}: build it again")
        return index


def settings_checksum(processor: Processor, *, mask_prompt: bool = True, is_pairs: bool = False) -> str:
    """Return a checksum of all settings that determine the token and tile counts of a record."""
    config, tokenizer = processor.config, processor.tokenizer
    values: tuple[object, ...] = (
        len(tokenizer),
        tokenizer.encode(_PROBE),
        str(processor.tiling),
        processor.config.candidate_resolutions if processor.max_tiles is None else processor.max_tiles,
        config.tile_px,
        config.tokens_per_side,
        mask_prompt,
    )
    if config.image_scale != 1:
        values += ("image scale", config.image_scale)
    if processor.kind != "DeepSeek-VL2":
        values += (processor.kind,)
    if processor.answer_window is not None:
        values += ("answer window", processor.answer_window)  # it decides which records can be trained
    if processor.character_level:
        values += (sorted(processor.character_level),)
    if is_pairs:
        values += ("pairs",)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


_RANGE = 500  # records counted at a time


def build_index(
    name: str,
    records: RecordStore,
    processor: Processor,
    *,
    files: str = "",
    mask_prompt: bool = True,
    is_pairs: bool = False,
    after_each: Callable[[], None] = lambda: None,
    processes: int = 1,
) -> StoreIndex:
    """Read every record of a store once and count its tokens and tiles.

    With `is_pairs`, a record counts with both its answers. A record that cannot be read or counted, or that should be a
    pair and is none, is listed in the index's `problems`. `after_each` is called for every record, for progress
    displays. With several processes the store and the processor are pickled; the index is the same.
    """
    rows = np.zeros((len(records), 4), dtype=np.int32)
    problems: list[LostRecord] = []
    ranges = [range(start, min(start + _RANGE, len(records))) for start in range(0, len(records), _RANGE)]
    count = _CountRange(name=name, records=records, processor=processor, mask_prompt=mask_prompt, is_pairs=is_pairs)
    for places, counted in zip(ranges, map_in_order(count, ranges, processes=processes), strict=True):
        for place, found in zip(places, counted, strict=True):
            if isinstance(found, LostRecord):
                problems.append(found)
            else:
                rows[place] = found
            after_each()
    return StoreIndex(
        name=name,
        settings=settings_checksum(processor, mask_prompt=mask_prompt, is_pairs=is_pairs),
        files=files,
        problems=tuple(problems),
        **{name: rows[:, column].astype(kind) for column, (name, kind) in enumerate(_ARRAYS.items())},
    )


@dataclass(frozen=True, kw_only=True)
class _CountRange:
    """Counts the records of a range: category, tokens, labels in the loss and tiles of each, or why it is lost."""

    name: str
    records: RecordStore
    processor: Processor
    mask_prompt: bool
    is_pairs: bool

    def __call__(self, places: range) -> list[tuple[int, int, int, int] | LostRecord]:
        return [self._count(place) for place in places]

    def _count(self, place: int) -> tuple[int, int, int, int] | LostRecord:
        try:
            record = self.records[place]
            counts = count_tokens(record, self.processor, mask_prompt=self.mask_prompt, is_pair=self.is_pairs)
        except MemoryError:
            raise
        except Exception as error:  # a damaged shard may raise anything; it affects this record only
            return LostRecord(source=self.name, record=place, message=one_line(error))
        return CATEGORIES.index(record.category), counts.total, counts.trained, counts.tiles


def one_line(error: Exception) -> str:
    """Return an error's message in one line, with the exception type unless it is a UserError."""
    text = " ".join(str(error).split())[:200]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def too_long(sources: Sequence[SourceIndex], seq_len: int) -> tuple[LostRecord, ...]:
    """List the records that are longer than `seq_len` tokens."""
    return tuple(
        LostRecord(source=source.name, record=int(record), message=f"{length} tokens > {seq_len}")
        for source in sources
        for long in (~source.is_fitting(seq_len),)
        for record, length in zip(source.records[long], source.num_tokens[long], strict=True)
    )
