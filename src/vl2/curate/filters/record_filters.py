"""Filters that depend on one record alone: damaged or tiny images, length, script of the language, repetition."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vl2.curate.filters.filter_chain import KEPT, Verdict, dropped
from vl2.curate.record_texts import CJK, n_grams, texts_of, words_of
from vl2.data.record import PLACEHOLDER, Record
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
from vl2.process.processor import Processor


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """Drop records whose images are missing, cannot be decoded, or differ in size from the record.

    Every image is decoded completely, because a truncated file fails only at its end.
    """

    root: Path = Path()
    name: str = "damaged"

    def __call__(self, record: Record) -> Verdict:
        for number, image in enumerate(record.images):
            try:
                size = open_stored(image, self.root).size
            except UserError as error:
                return dropped(f"image {number}: {error}")
            if size != (image.width, image.height):
                is_px, says_px = f"{size[0]} x {size[1]} px", f"{image.width} x {image.height} px"
                return dropped(f"image {number} is {is_px}, the record says {says_px}")
        return KEPT


@dataclass(frozen=True, kw_only=True)
class Tiny:
    """Drop records with an image that is too small or too narrow to show anything.

    Sizes are taken from the record, no image is opened. `max_aspect` is the longer side over the shorter one.
    """

    min_side_px: int = 32
    max_aspect: float = 16.0
    name: str = "tiny"

    def __post_init__(self) -> None:
        if self.min_side_px < 1 or self.max_aspect < 1:
            raise UserError(
                f"min_side_px and max_aspect must be at least 1, got {self.min_side_px} and {self.max_aspect}"
            )

    def __call__(self, record: Record) -> Verdict:
        for number, image in enumerate(record.images):
            shorter, longer = sorted((image.width, image.height))
            size = f"image {number} is {image.width} x {image.height} px"
            if shorter < self.min_side_px:
                return dropped(f"{size}, its shorter side is below {self.min_side_px} px")
            if longer > self.max_aspect * shorter:
                return dropped(f"{size}, its aspect is above {self.max_aspect:g}")
        return KEPT


def count_characters(record: Record) -> int:
    """Return the number of characters of all texts of a record; images do not count."""
    return sum(map(len, texts_of(record, "system", "user", "assistant")))


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Count the tokens of a record in training, visual tokens included. This decodes the images."""

    processor: Processor
    root: Path = Path()

    def __call__(self, record: Record) -> int:
        images = [open_stored(image, self.root) for image in record.images]
        sample = self.processor.encode(record.to_turns(images), train=True, name=record.id)
        return len(sample.input_ids)


@dataclass(frozen=True, kw_only=True)
class TooLong:
    """Drop records that are longer than a limit in tokens or characters.

    `count` is `count_characters` or a `TokenCount`; `unit` names the unit in the reason.
    """

    limit: int
    count: Callable[[Record], int] = count_characters
    unit: str = "characters"
    name: str = "too_long"

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise UserError(f"limit must be at least 1, got {self.limit}")

    @classmethod
    def in_tokens(cls, limit: int, processor: Processor, root: Path = Path()) -> TooLong:
        """Return the filter that counts tokens with a processor."""
        return cls(limit=limit, count=TokenCount(processor=processor, root=root), unit="tokens")

    def __call__(self, record: Record) -> Verdict:
        try:
            length = self.count(record)
        except UserError as error:
            return dropped(f"its length cannot be counted: {error}")
        return KEPT if length <= self.limit else dropped(f"{length} {self.unit}, the limit is {self.limit}")


_WRITTEN_IN_CJK = ("zh", "ja", "ko")
_CJK = re.compile(f"[{CJK}]")
_LETTER_RUN = re.compile(f"[^\\W\\d_{CJK}]+")


def cjk_share(text: str) -> float:
    """Return the share of words that are Chinese, Japanese or Korean characters; 0 for a text without words."""
    cjk, others = len(_CJK.findall(text)), len(_LETTER_RUN.findall(text))
    return cjk / (cjk + others) if cjk + others else 0.0


@dataclass(frozen=True, kw_only=True)
class Language:
    """Drop records whose answers are not in the script of their language, such as Chinese with English mixed in.

    The filter distinguishes scripts, not languages: it cannot tell English from French. `max_foreign` is the largest
    allowed share of an answer's words in the other script.
    """

    max_foreign: float = 0.3
    min_words: int = 8  # shorter answers are often names or text from the image, in any script
    name: str = "language"

    def __post_init__(self) -> None:
        if not 0 <= self.max_foreign <= 1:
            raise UserError(f"max_foreign must be in 0..1, got {self.max_foreign}")

    def __call__(self, record: Record) -> Verdict:
        is_cjk = record.language.split("-")[0].lower() in _WRITTEN_IN_CJK
        for text in texts_of(record, "assistant"):
            prose = PLACEHOLDER.sub(" ", text)
            if len(_CJK.findall(prose)) + len(_LETTER_RUN.findall(prose)) < self.min_words:
                continue
            foreign = 1 - cjk_share(prose) if is_cjk else cjk_share(prose)
            if foreign > self.max_foreign:
                return dropped(f"{foreign:.0%} of an answer's words are not in the script of {record.language}")
        return KEPT


def repeated_share(text: str, n: int) -> float:
    """Return the share of a text's n-grams that repeat an earlier one: 0 for none, near 1 for a text in a loop."""
    grams = n_grams(words_of(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Drop records whose answers repeat themselves, as the output of captioning models in a loop does.

    Use it for prose only: tables, code and lists repeat themselves legitimately.
    """

    n: int = 4
    max_share: float = 0.2
    name: str = "repetition"

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.max_share <= 1:
            raise UserError(f"n must be at least 1 and max_share in 0..1, got {self.n} and {self.max_share}")

    def __call__(self, record: Record) -> Verdict:
        for text in texts_of(record, "assistant"):
            share = repeated_share(text, self.n)
            if share > self.max_share:
                return dropped(f"{share:.0%} of an answer's {self.n}-grams are repeats, above {self.max_share:.0%}")
        return KEPT
