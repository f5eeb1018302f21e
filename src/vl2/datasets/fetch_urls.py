"""Download openly licensed pictures by a list of URLs with SHA-256 hashes and licenses, and write them as records.

    TO/pictures/ab/ab12...ef.jpg   each picture under its hash
    TO/records.jsonl               a caption record for each picture there: `vl2 data job recaption` rewrites them
    TO/failed.jsonl                the pictures that could not be had, and why; absent if there are none

The list is a TOML file of [[picture]] tables or a CSV file with a header. Its columns are url, sha256 and licence, and
optionally author, caption and language. Addresses outside the public internet are refused (see `vl2.process.fetch`).
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from vl2.data.raw_files import measure, read_text
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.data.setting_values import arguments
from vl2.errors import UserError
from vl2.files import read_toml, write_whole
from vl2.process.fetch import Cancellation, fetch

ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
MAX_PIXELS = 100_000_000
RECORDS, FAILED = "records.jsonl", "failed.jsonl"
ASK = {"en": "Describe the picture.", "zh": "请描述这张图片。"}
NO_CAPTION = {"en": "A photograph.", "zh": "一张照片。"}
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class ListedPicture:
    """A line of the list."""

    url: str
    sha256: str
    licence: str  # the SPDX id if there is one
    author: str = ""
    caption: str = ""
    language: str = "en"  # of the caption

    def __post_init__(self) -> None:
        if not self.url.lower().startswith(("http://", "https://")):
            raise UserError(f"url must begin with http:// or https://, got {self.url[:80]!r}")
        if not _SHA256.fullmatch(self.sha256):
            raise UserError(f"sha256 must be 64 digits and letters a to f, got {self.sha256[:80]!r}")
        if not self.licence.strip():
            raise UserError("licence must not be empty")
        if self.language not in ASK:
            raise UserError(f"language must be {' or '.join(ASK)}, got {self.language!r}")


@dataclass(frozen=True, kw_only=True)
class UrlOptions:
    """Limits of a download."""

    concurrency: int = 8  # pictures under way at once
    max_bytes: int = 20_000_000  # of one picture
    timeout_s: float = 60.0  # of one picture, with its redirects
    allow_private: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 64:
            raise UserError(f"concurrency must be from 1 to 64, got {self.concurrency}")
        if self.max_bytes < 1 or self.timeout_s <= 0:
            raise UserError(f"the limits must be above 0, got {self.max_bytes} bytes and {self.timeout_s:g} s")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a picture: its path below the folder, or why there is none."""

    picture: ListedPicture
    path: str = ""
    why: str = ""
    was_there: bool = False


def read_picture_list(path: str) -> tuple[ListedPicture, ...]:
    """Read a list of pictures. Raise a UserError that names the file and the entry if anything in it is not valid."""
    if path.lower().endswith(".csv"):
        rows: Sequence[Mapping[str, Any]] = _csv_rows(path)
    else:
        values = read_toml(path)
        rows = values.pop("picture", [])
        if values or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: a list of pictures has [[picture]] tables, and nothing else")
    if not rows:
        raise UserError(f"{path} lists no picture")
    pictures: dict[str, ListedPicture] = {}
    for number, row in enumerate(rows, start=1):
        try:
            picture = ListedPicture(**arguments(ListedPicture, row, "a picture"))
            if picture.sha256 in pictures:
                raise UserError(f"sha256 {picture.sha256} is listed twice")
        except UserError as error:
            raise UserError(f"{path}: picture {number}: {error}") from None
        pictures[picture.sha256] = picture
    return tuple(pictures.values())


def _csv_rows(path: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(read_text(Path(path)), newline=""))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}") from None
    for number, row in enumerate(rows, start=1):
        if None in row or None in row.values():
            raise UserError(f"{path}: picture {number} must have {len(reader.fieldnames or ())} values, as the header")
    return [{name: value for name, value in row.items() if value} for row in rows]


def fetch_pictures(pictures: Sequence[ListedPicture], to: Path, options: UrlOptions) -> Iterator[Outcome]:
    """Download the pictures that are not there yet, and yield the outcome of each, in the order of completion.

    An interrupted run continues: a picture appears under its name only when it is complete and its hash is right.
    """
    (to / "pictures").mkdir(parents=True, exist_ok=True)
    cancellation = Cancellation()
    todo, pool = iter(pictures), ThreadPoolExecutor(options.concurrency, thread_name_prefix="vl2-fetch")
    try:
        # Few are submitted ahead, so that a list of millions needs no more memory than the list.
        running: set[Future[Outcome]] = set()
        while True:
            for picture in islice(todo, 2 * options.concurrency - len(running)):
                running.add(pool.submit(_get, picture, to, options, cancellation))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield each.result()
    finally:
        cancellation.cancel()
        pool.shutdown(wait=True, cancel_futures=True)


def _get(picture: ListedPicture, to: Path, options: UrlOptions, cancellation: Cancellation) -> Outcome:
    stem = f"pictures/{picture.sha256[:2]}/{picture.sha256}"
    try:
        for ending in ENDINGS.values():
            file = to / f"{stem}{ending}"
            if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == picture.sha256:
                return Outcome(picture=picture, path=f"{stem}{ending}", was_there=True)
        data = fetch(
            picture.url,
            max_bytes=options.max_bytes,
            timeout_s=options.timeout_s,
            allow_private=options.allow_private,
            cancellation=cancellation,
        )
        found = hashlib.sha256(data).hexdigest()
        if found != picture.sha256:
            raise UserError(f"its hash is {found}, not the listed one")
        path = f"{stem}{_ending(data)}"
        _write(to / path, data)
    except UserError as error:
        return Outcome(picture=picture, why=str(error))
    except OSError as error:
        return Outcome(picture=picture, why=f"it cannot be written: {error.strerror or error}")
    return Outcome(picture=picture, path=path)


def _ending(data: bytes) -> str:
    """Return the file name ending of an image. Raise UserError if it is no whole JPEG, PNG or WebP, or too large."""
    try:
        with Image.open(io.BytesIO(data), formats=tuple(ENDINGS)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(f"it has {image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            image.load()
            return ENDINGS[image.format or ""]
    except Image.DecompressionBombError:
        raise UserError(f"it has more than {MAX_PIXELS:,} pixels") from None
    except (OSError, ValueError, SyntaxError):
        raise UserError("it is no JPEG, PNG or WebP image, or a damaged one") from None


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(exist_ok=True)
    part = file.with_suffix(f"{file.suffix}.part")
    part.write_bytes(data)
    os.replace(part, file)


def write_results(outcomes: Sequence[Outcome], to: Path) -> None:
    """Write the records of the pictures that are there, and the list of failures, both in the order of the hashes."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.picture.sha256)
    records = [_record(outcome, to).to_dict() for outcome in ordered if outcome.path]
    write_whole(to / RECORDS, "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records))
    failed = [{"url": o.picture.url, "sha256": o.picture.sha256, "why": o.why} for o in ordered if o.why]
    if failed:
        write_whole(to / FAILED, "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in failed))
    else:
        (to / FAILED).unlink(missing_ok=True)


def _record(outcome: Outcome, to: Path) -> Record:
    picture = outcome.picture
    width, height = measure(to / outcome.path, outcome.path)
    caption = picture.caption.strip() or NO_CAPTION[picture.language]
    return Record(
        id=picture.sha256[:16],
        source=f"{picture.url} by {picture.author}" if picture.author else picture.url,
        category="caption",
        language=picture.language,
        licence=picture.licence,
        messages=(
            Message(role="user", parts=(Part(image=0), Part(text=ASK[picture.language]))),
            Message(role="assistant", parts=(Part(text=caption),)),
        ),
        images=(StoredImage(path=outcome.path, width=width, height=height),),
    )
