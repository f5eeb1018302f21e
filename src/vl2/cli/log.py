"""The commands `vl2 log list`, `search`, `show`, `export`, `delete` and `prune`, for a log of questions and answers."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from vl2.cli.flags import OptionalFile, OptionalFolder, OptionalText, print_json
from vl2.cli.log_flags import VARIABLE, log_file
from vl2.errors import UserError
from vl2.files import local_path, write_whole

if TYPE_CHECKING:
    from vl2.answer_log.reader import LoggedAnswer, LogReader

LINE_CHARS = 60  # of a question, and of an answer, in a list
SECONDS = {"h": 3600, "d": 86_400, "w": 7 * 86_400}
BYTES = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

Limit = Annotated[int, tyro.conf.arg(metavar="N")]


@contextlib.contextmanager
def open_reader(given: str | None) -> Iterator[LogReader]:
    """Yield the log of a flag or of the environment. Raise UserError if there is none."""
    from vl2.answer_log.reader import LogReader

    file = log_file(given)
    if file is None:
        raise UserError(f"say which log: --log FILE, or {VARIABLE}")
    reader = LogReader(file)
    try:
        yield reader
    finally:
        reader.close()


@dataclass(frozen=True, kw_only=True)
class LogList:
    """List the last answers, the newest first: number, time in UTC, command, model, question, answer.

    Examples:
      vl2 log list --log answers.db
      vl2 log list --limit 3 --json
    """

    limit: Limit = 20
    """how many"""
    json: bool = False
    """print JSON instead of lines"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        with open_reader(self.log) as reader:
            print_answers(reader.latest(check_limit(self.limit)), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class LogSearch:
    """List the answers that have every given word in their question or answer, the newest first.

    Case does not matter. A word may be a part of a longer one.

    Examples:
      vl2 log search total oslo --log answers.db
    """

    words: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORD")]
    """what to find"""
    limit: Limit = 20
    """how many"""
    json: bool = False
    """print JSON instead of lines"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        with open_reader(self.log) as reader:
            print_answers(reader.search(" ".join(self.words), check_limit(self.limit)), as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class LogShow:
    """Print one answer with its whole conversation, its pictures and its numbers.

    Examples:
      vl2 log show 12 --log answers.db
      vl2 log show 12 --json
    """

    number: Annotated[int, tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER")]
    """as `vl2 log list` prints it"""
    json: bool = False
    """print JSON instead of text"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        with open_reader(self.log) as reader:
            found = reader.get(self.number)
        if self.json:
            print_json(found.to_dict())
        else:
            print("\n".join(_page(found)))


@dataclass(frozen=True, kw_only=True)
class LogExport:
    """Write all answers as JSON Lines, the oldest first.

    Examples:
      vl2 log export --log answers.db > answers.jsonl
      vl2 log export --out answers.jsonl --pictures pictures/
    """

    out: OptionalFile = None
    """the file to write; stdout by default"""
    pictures: OptionalFolder = None
    """write the pictures that the log has into this folder, each named by its hash"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        with open_reader(self.log) as reader:
            lines = (json.dumps(found.to_dict(), ensure_ascii=self.out is None) for found in reader.oldest_first())
            if self.out is None:
                for line in lines:
                    print(line)
            else:
                write_whole(local_path(self.out), "".join(f"{line}\n" for line in lines))
            if self.pictures is not None:
                folder = local_path(self.pictures)
                written: set[str | None] = set()
                for found in reader.oldest_first():
                    for digest in {picture["sha256"] for picture in found.pictures} - written:
                        content = None if digest is None else reader.picture(digest)
                        written.add(digest)
                        if content is not None:
                            write_whole(folder / f"{digest}{suffix_of(content)}", content)


@dataclass(frozen=True, kw_only=True)
class LogDelete:
    """Delete answers, and the pictures that no other answer has.

    Examples:
      vl2 log delete 12 13 --log answers.db
    """

    numbers: Annotated[tuple[int, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NUMBER")]
    """as `vl2 log list` prints them"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        with open_reader(self.log) as reader:
            reader.delete(self.numbers)


@dataclass(frozen=True, kw_only=True)
class LogPrune:
    """Delete the oldest answers: those above an age, then as many as it takes to get below a size.

    Examples:
      vl2 log prune --older-than 30d --log answers.db
      vl2 log prune --larger-than 500MB
    """

    older_than: OptionalText = None
    """hours, days or weeks, such as 12h, 30d or 4w"""
    larger_than: OptionalText = None
    """the size of the file, such as 500MB or 2GB"""
    log: OptionalFile = None
    """the SQLite file; VL2_LOG by default"""

    def run(self) -> None:
        from vl2.answer_log.writer import timestamp

        if self.older_than is None and self.larger_than is None:
            raise UserError("say what to delete: --older-than AGE, --larger-than SIZE, or both")
        age_s = None if self.older_than is None else _amount("--older-than", self.older_than, SECONDS, "30d")
        max_bytes = None if self.larger_than is None else _amount("--larger-than", self.larger_than, BYTES, "500MB")
        with open_reader(self.log) as reader:
            before = None if age_s is None else timestamp(max(0.0, time.time() - age_s))
            print(f"vl2: {reader.prune(before=before, max_bytes=max_bytes)} answers deleted", file=sys.stderr)


LOG_COMMANDS = {
    "list": LogList,
    "search": LogSearch,
    "show": LogShow,
    "export": LogExport,
    "delete": LogDelete,
    "prune": LogPrune,
}


@dataclass(frozen=True, kw_only=True)
class Log:
    """List, search, export and delete the answers that --log or VL2_LOG has kept.

    Examples:
      vl2 log list --log answers.db
      vl2 log search total --log answers.db
      vl2 ask "What is the total?" -i receipt.png --model tiny --log answers.db

    `vl2 log COMMAND --help` says more.
    """

    command: (
        Annotated[LogList, tyro.conf.subcommand("list")]
        | Annotated[LogSearch, tyro.conf.subcommand("search")]
        | Annotated[LogShow, tyro.conf.subcommand("show")]
        | Annotated[LogExport, tyro.conf.subcommand("export")]
        | Annotated[LogDelete, tyro.conf.subcommand("delete")]
        | Annotated[LogPrune, tyro.conf.subcommand("prune")]
    )

    def run(self) -> None:
        self.command.run()


def check_limit(limit: int) -> int:
    if limit < 1:
        raise UserError(f"--limit must be at least 1, got {limit}")
    return limit


def print_answers(found: Sequence[LoggedAnswer], *, as_json: bool) -> None:
    if as_json:
        print_json([answer.to_dict() for answer in found])
        return
    for answer in found:
        when = f"{answer.time[:10]} {answer.time[11:19]}"
        said = f"{_line(answer.question)} -> {_line(answer.answer)}"
        print(f"{answer.id:>6}  {when}  {_line(answer.source)}  {_line(answer.model)}  {said}")


def printable(text: str) -> str:
    """Return a text without control characters: what a client sent must not command the terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def _line(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= LINE_CHARS else f"{line[: LINE_CHARS - 3]}..."


def _page(found: LoggedAnswer) -> Iterator[str]:
    yield f"{found.id}  {found.time}  {_line(found.source)}  {_line(found.model)}"
    for message in found.messages:
        pieces = [_shown(part, found) for part in message["content"]]
        yield f"\n{message['role']}: {printable(' '.join(pieces))}"
    yield f"\nanswer: {printable(found.answer)}\n"
    tokens = (
        f"{found.prompt_tokens} tokens of prompt ({found.visual_tokens} visual), {found.completion_tokens} of answer"
    )
    yield f"{tokens}, {found.seconds:.1f} s, ended by {found.finish_reason}"
    if found.options:
        yield printable(f"options: {json.dumps(found.options, ensure_ascii=False)}")


def _shown(part: dict[str, Any], found: LoggedAnswer) -> str:
    if part["type"] == "text":
        return str(part["text"])
    picture = found.pictures[part["image"]] if part["image"] < len(found.pictures) else {"source": "?", "sha256": None}
    return f"[{picture['source']}, sha256 {picture['sha256'] or 'not known'}]"


def _amount(flag: str, text: str, units: dict[str, int], example: str) -> int:
    match = re.fullmatch(rf"(\d{{1,9}})\s*({'|'.join(units)})", text.strip(), re.IGNORECASE)
    if match is None:
        raise UserError(
            f"{flag} must be a whole number with one of {', '.join(units)}, such as {example}, got {text!r}"
        )
    unit = next(factor for name, factor in units.items() if name.lower() == match[2].lower())
    return int(match[1]) * unit


def suffix_of(content: bytes) -> str:
    """Return the suffix of a picture's format, "" if Pillow does not know it."""
    import io

    from PIL import Image

    try:
        with Image.open(io.BytesIO(content)) as picture:
            return f".{(picture.format or '').lower()}".rstrip(".")
    except (OSError, ValueError, Image.DecompressionBombError):
        return ""
