"""Validate a user's data, split it into training and held-out records, and write both into the run folder.

The data are read once for validation and once or twice for writing, so they need not fit into memory. The run has its
own copy, so the training data cannot change during a run or before it is resumed.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vl2.data.index import count_tokens
from vl2.data.record import Record
from vl2.data.store import Problem, write_records
from vl2.data.validate import Checked, validate
from vl2.datasets.own_data import read_own
from vl2.errors import UserError
from vl2.process.grounding import DET, END_DET, END_REF, REF, parse_strict
from vl2.process.processor import Processor
from vl2.train.evaluation import is_answered

FOLDER, TRAIN, HELD_OUT, ABOUT = "data", "train.tar", "held-out.tar", "about.json"
HELD_OUT_PART, MOST_HELD_OUT = 0.1, 64
# A loss over fewer records says little about when to stop; but no more than a quarter of a small set.
LEAST_HELD_OUT, MOST_HELD_OUT_PART = 8, 0.25
# Four numbers in brackets in an answer without tags: boxes that the model would learn as plain text.
_BARE_BOX = re.compile(r"[\[(]\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*[\])]")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """A summary of the data written for a run."""

    num_train: int
    num_held_out: int
    num_bad: int
    num_bare_boxes: int  # answers with box-like numbers but without the tags
    most_tokens: int  # of any record
    most_tiles: int
    tokens: Mapping[str, int]  # of the training records, by category

    @property
    def mean_tokens(self) -> float:
        return sum(self.tokens.values()) / self.num_train


@dataclass(frozen=True, kw_only=True)
class _RecordInfo:
    """The properties of a valid record that are kept between the passes."""

    group: bytes  # equal for records with the same first image
    category: str
    num_tokens: int
    num_tiles: int
    has_bare_box: bool
    is_answered: bool  # false for a document, which has no question


def prepare(
    location: str,
    folder: Path,
    processor: Processor,
    *,
    max_tokens: int,
    num_held_out: int | None,
    seed: int,
    say: Say,
    is_pairs: bool = False,
) -> OwnData:
    """Validate the data at a location, split it and write it into the run's folder, unless that is already done.

    `num_held_out` defaults to `default_held_out` of the records. Records with the same image are held out together;
    documents are never held out. With `is_pairs`, a record without a rejected answer is bad, and one counts with both
    answers. `say` gets one line for every bad record. Raise UserError if no record is valid.
    """
    own = folder / FOLDER
    if (own / ABOUT).is_file():
        return OwnData(**json.loads((own / ABOUT).read_text(encoding="utf-8")))
    bad: Counter[str] = Counter()
    valid = _valid_records(location, processor, max_tokens, bad, say, is_pairs=is_pairs)
    seen = [_inspect(record, processor, is_pairs) for record in valid]
    num_bad = sum(bad.values())
    if not seen:
        raise UserError(f"nothing in {location} can be trained on: {num_bad} records are bad")
    held_out = _choose_held_out(seen, num_held_out, seed)
    train = [one for number, one in enumerate(seen) if number not in held_out]
    tokens: Counter[str] = Counter()
    for one in train:
        tokens[one.category] += one.num_tokens
    data = OwnData(
        num_train=len(train),
        num_held_out=len(held_out),
        num_bad=num_bad,
        num_bare_boxes=sum(one.has_bare_box for one in seen),
        most_tokens=max(one.num_tokens for one in seen),
        most_tiles=max(one.num_tiles for one in seen),
        tokens=dict(sorted(tokens.items())),
    )
    _write(location, own, processor, max_tokens, held_out, data, is_pairs)
    return data


def _write(
    location: str,
    own: Path,
    processor: Processor,
    max_tokens: int,
    held_out: set[int],
    data: OwnData,
    is_pairs: bool,
) -> None:
    def records(is_held_out: bool) -> Iterator[Record]:
        again = _valid_records(location, processor, max_tokens, Counter(), lambda text: None, is_pairs=is_pairs)
        return (record for number, record in enumerate(again) if (number in held_out) == is_held_out)

    try:
        shutil.rmtree(own, ignore_errors=True)  # a folder without the last file is left from an interrupted run
        own.mkdir(parents=True)
        write_records(records(False), str(own / TRAIN))
        if held_out:
            write_records(records(True), str(own / HELD_OUT))
        (own / ABOUT).write_text(json.dumps(asdict(data), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {own}: {error.strerror or error}") from None


def _valid_records(
    location: str, processor: Processor, max_tokens: int, bad: Counter[str], say: Say, *, is_pairs: bool
) -> Iterator[Record]:
    """Yield the valid records, and report the first problem of each other one with `say`."""
    for checked in validate(read_own(location), processor=processor, max_tokens=max_tokens):
        problems = list(_problems(checked, is_pairs))
        if problems or checked.located is None:
            bad[problems[0].kind] += 1
            say(str(problems[0]))
        else:
            yield checked.located.record


def _problems(checked: Checked, is_pairs: bool) -> Iterator[Problem]:
    """Yield the problems that exclude a record. Here a record that is too long is excluded, not just a warning."""
    yield from checked.problems
    if checked.located is None or checked.problems:
        return
    record = checked.located.record
    if is_pairs and not record.rejected:
        why = "it has no rejected answer, and preferences are learned from pairs"
        yield Problem(place=checked.located.place, id=record.id, kind="record", why=why)
    for message in record.messages:
        text = "".join(record.with_boxes(part.text or "") for part in message.parts)
        if message.role == "assistant" and (DET in text or END_DET in text):
            try:
                parse_strict(text)
            except UserError as error:
                why = f"the boxes of an answer cannot be read: {error}"
                yield Problem(place=checked.located.place, id=record.id, kind="encode", why=why)


def _inspect(record: Record, processor: Processor, is_pair: bool) -> _RecordInfo:
    counts = count_tokens(record, processor, is_pair=is_pair)
    first = record.images[0].data if record.images else record.id.encode()
    answers = [part.text or "" for m in record.messages if m.role == "assistant" for part in m.parts]
    return _RecordInfo(
        group=hashlib.sha256(first or b"").digest(),
        category=record.category,
        num_tokens=counts.total,
        num_tiles=counts.tiles,
        has_bare_box=any(_BARE_BOX.search(text) and REF not in text and END_REF not in text for text in answers),
        is_answered=is_answered(record),
    )


def default_held_out(num_records: int) -> int:
    """Return a tenth of the records, at least 8 and at most 64, but never more than a quarter."""
    floor = min(LEAST_HELD_OUT, int(num_records * MOST_HELD_OUT_PART))
    return min(MOST_HELD_OUT, max(floor, int(num_records * HELD_OUT_PART)))


def _choose_held_out(seen: list[_RecordInfo], wanted: int | None, seed: int) -> set[int]:
    """Return the numbers of the held-out records: whole groups, in an order that depends on seed and image alone.

    Groups with a record without an answer are not held out.
    """
    if wanted is None:
        wanted = default_held_out(len(seen))
    groups: dict[bytes, list[int]] = {}
    for number, one in enumerate(seen):
        groups.setdefault(one.group, []).append(number)
    order = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}".encode() + group).digest())
    chosen: set[int] = set()
    for group in order:
        if len(chosen) >= wanted:
            break
        is_asked = all(seen[number].is_answered for number in groups[group])
        if is_asked and len(chosen) + len(groups[group]) < len(seen):  # keep at least one record for training
            chosen.update(groups[group])
    return chosen
