"""Group 6: ask the publisher's sample questions again, greedily and in the released format, and compare the answers.

The publisher says that the output looks "something like" its samples, so the comparison has tolerances. Coordinates of
boxes may differ by BOX_TOLERANCE of 999 (users report 904 where 900 is published). In other text most words must be the
same, in the same order.

Source: README of the released repository, 2025-02-26.
"""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vl2.errors import UserError
from vl2.process.fetch import fetch
from vl2.process.grounding import LabeledBoxes, parse_strict
from vl2.verify.check import GROUPS, Check, Verdict

# This is the main branch, but the content of each file is pinned by its git blob id.
PICTURES_URL = "https://raw.githubusercontent.com/deepseek-ai/DeepSeek-VL2/main/images"
BLOB_IDS = {
    "visual_grounding_1.jpeg": "762dbbb6fa26a34eb137a076d67035f023d08539",
    "multi_image_1.jpeg": "e8e3f5acaed0cf956f6bcbcc42e796af6ce6b4b4",
    "multi_image_2.jpeg": "5777d198b83de15eb21243f8aac49074922053fb",
    "multi_image_3.jpeg": "24eb26b09c60305232eda1f0cab2d4106d0e552e",
}
MAX_BYTES = 50_000_000
TIMEOUT_S = 60.0


def blob_id(data: bytes) -> str:
    """Return git's blob id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Pictures:
    """The publisher's images, from a folder or downloaded. Images and errors are cached."""

    def __init__(self, folder: Path | None = None, *, may_download: bool = True) -> None:
        self._folder, self._may_download = folder, may_download
        self._known: dict[str, bytes | UserError] = {}

    def get(self, name: str) -> bytes:
        """Return the bytes of an image. Raise UserError if it cannot be read, or if its content differs."""
        if name not in self._known:
            try:
                self._known[name] = self._checked(name)
            except UserError as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, UserError):
            raise found
        return found

    def _checked(self, name: str) -> bytes:
        data = self._read(name)
        if (found := blob_id(data)) != BLOB_IDS[name]:
            raise UserError(f"{name} is not the published picture: its blob id is {found}, not {BLOB_IDS[name]}")
        return data

    def _read(self, name: str) -> bytes:
        if self._folder is not None:
            try:
                return (self._folder / name).read_bytes()
            except OSError as error:
                raise UserError(f"{name} is not in the pictures folder: {error.strerror}") from None
        if not self._may_download:
            raise UserError(f"{name} was not downloaded, because --no-download is given")
        # The address does not come from a user, so a mirror in a private network is allowed.
        return fetch(f"{PICTURES_URL}/{name}", max_bytes=MAX_BYTES, timeout_s=TIMEOUT_S, allow_private=True)


GROUP = GROUPS[5]
BOX_TOLERANCE = 10  # in units of 1/999 of the image
MIN_SIMILARITY = 0.8  # share of equal words
ANSWER_TOKENS = 512  # limit of the answer's length

Likeness = Literal["same", "close", "differs"]


@dataclass(frozen=True, kw_only=True)
class PublishedSample:
    """A prompt in the released format, with the published answer."""

    name: str
    size: str
    prompt: str
    pictures: tuple[str, ...]
    answer: str | None  # None if none is published
    prefill_chunk: int | None = None
    excuse: str = ""  # the reason why a correct answer may differ


_GIRAFFE = "<image>\n<|ref|>The giraffe at the back.<|/ref|>."
_THREE = (
    "This is image_1: <image>\nThis is image_2: <image>\nThis is image_3: <image>\n"
    " Can you tell me what are in the images?"
)
_THREE_PICTURES = ("multi_image_1.jpeg", "multi_image_2.jpeg", "multi_image_3.jpeg")

SAMPLES = (
    PublishedSample(
        name="one image, a box",
        size="tiny",
        prompt=_GIRAFFE,
        pictures=("visual_grounding_1.jpeg",),
        answer="<|ref|>The giraffe at the back.<|/ref|><|det|>[[580, 270, 999, 900]]<|/det|>",
    ),
    PublishedSample(
        name="three images",
        size="tiny",
        prompt=_THREE,
        pictures=_THREE_PICTURES,
        answer="The images show three different types of vegetables. Image_1 features carrots, which are orange with "
        "green tops. Image_2 displays corn cobs, which are yellow with green husks. Image_3 contains raw pork ribs, "
        "which are pinkish-red with some marbling.",
    ),
    PublishedSample(
        name="three images, read in chunks",
        size="small",
        prompt=_THREE,
        pictures=_THREE_PICTURES,
        answer="The first image contains carrots. The second image contains corn. The third image contains meat.",
        prefill_chunk=512,
        excuse="the published answer was made by code that rounds the rotary angles of this size",
    ),
    PublishedSample(
        name="one image, a box", size="base", prompt=_GIRAFFE, pictures=("visual_grounding_1.jpeg",), answer=None
    ),
)


@dataclass(frozen=True, kw_only=True)
class AnswerComparison:
    """The result of comparing an answer with the published one."""

    likeness: Likeness
    explanation: str


def samples_of(size: str | None) -> list[PublishedSample]:
    return [sample for sample in SAMPLES if sample.size == size]


def compare_answers(ours: str, published: str) -> AnswerComparison:
    """Compare two answers: exactly, then by the coordinates of boxes if there are any, else by words."""
    ours, published = ours.strip(), published.strip()
    if ours == published:
        return AnswerComparison(likeness="same", explanation="the same text")
    expected = _boxes(published)
    if expected:
        return _compare_boxes(_boxes(ours), expected)
    mine, theirs = ours.split(), published.split()
    share = difflib.SequenceMatcher(None, mine, theirs, autojunk=False).ratio()
    place = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    explanation = (
        f"{share:.0%} of the words are the same; the first difference is word {place + 1}: "
        f"{_word(mine, place)}, published {_word(theirs, place)}"
    )
    return AnswerComparison(likeness="close" if share >= MIN_SIMILARITY else "differs", explanation=explanation)


def _compare_boxes(ours: list[LabeledBoxes], published: list[LabeledBoxes]) -> AnswerComparison:
    counts = [[(entry.label, len(entry.boxes)) for entry in found] for found in (ours, published)]
    if counts[0] != counts[1]:
        says = "no well-formed box" if not ours else f"labels and numbers of boxes {counts[0]}"
        return AnswerComparison(likeness="differs", explanation=f"{says}, published {counts[1]}")
    off = max(
        abs(a - b)
        for mine, theirs in zip(ours, published, strict=True)
        for box, other in zip(mine.boxes, theirs.boxes, strict=True)
        for a, b in zip(box, other, strict=True)
    )
    likeness: Likeness = "close" if off <= BOX_TOLERANCE else "differs"
    return AnswerComparison(
        likeness=likeness, explanation=f"boxes are off by at most {off} of 999 ({BOX_TOLERANCE} is allowed)"
    )


def _boxes(text: str) -> list[LabeledBoxes]:
    try:
        return parse_strict(text)
    except UserError:
        return []


def _word(words: list[str], place: int) -> str:
    return repr(words[place]) if place < len(words) else "the end"


def check_answer(sample: PublishedSample, answer: str, *, weights: str) -> Check:
    """Compare an answer with the published one. `weights` is the type of the weights in memory."""
    details = [f"asked:     {sample.prompt!r}", f"answered:  {answer}"]
    name = sample.name
    if sample.answer is None:
        found = "the publisher prints no answer of this size; ours is below"
        return Check(group=GROUP, name=name, verdict="not checked", found=found, details=tuple(details))
    comparison = compare_answers(answer, sample.answer)
    details.append(f"published: {sample.answer}")
    found = f"{comparison.likeness}: {comparison.explanation}"
    verdict: Verdict = "pass"
    if comparison.likeness == "differs":
        excuse = sample.excuse
        if weights not in ("bfloat16", "float16", "float32"):
            excuse = f"the weights are held in {weights}, unlike those of the published answer"
        verdict = "not checked" if excuse else "fail"
        found += f" (not yet a fault: {excuse})" if excuse else ""
    return Check(group=GROUP, name=name, verdict=verdict, found=found, details=tuple(details))


def pictures_of(sample: PublishedSample, pictures: Pictures) -> list[bytes] | Check:
    """Return the images of a sample, or a check with the reason if one cannot be read."""
    try:
        return [pictures.get(name) for name in sample.pictures]
    except UserError as error:
        return Check(group=GROUP, name=sample.name, verdict="not checked", found=str(error))
