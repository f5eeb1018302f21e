"""Read the entries of a large JSON file one at a time, in bounded memory.

Annotation files of public datasets are single lists or objects of up to several gigabytes. Python's own decoder reads
every entry, so that values are the same as those of `json.loads`; only the brackets around the entries are read here.
An entry that is not valid JSON ends the file: it is yielded as a UserError, after the entries before it.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from vl2.errors import UserError

Row = tuple[str, Any]  # (location, content): the content is a row, or the UserError from reading it

CHUNK_CHARACTERS = 2**20
MAX_ENTRY_CHARACTERS = 2**28  # of one entry; a larger one is an error, not a reason to fill the memory
_SPACE = " \t\n\r"
# Errors of the decoder this close to the end of what was read may only mean that more has to be read. The longest token
# that can be cut there is an escape of two surrogates, 12 characters.
_CUT_CHARACTERS = 16


def list_rows(path: Path, *keys: str) -> Iterator[Row]:
    """Yield the entries of a list in a JSON file: the whole file, or the value at the path of `keys`.

    Raise UserError at once if the file cannot be read or holds no such list.
    """
    return _primed(_list_rows(path, keys))


def object_rows(path: Path) -> Iterator[Row]:
    """Yield the entries of the object that a JSON file holds, as (key, value).

    Raise UserError at once if the file cannot be read or holds no object.
    """
    return _primed(_object_rows(path))


def _primed(rows: Generator[Row, None, None]) -> Iterator[Row]:
    """Run a generator up to its first yield, which stands for "the layout is right" and has no content."""
    next(rows)
    return rows


def _list_rows(path: Path, keys: tuple[str, ...]) -> Generator[Row, None, None]:
    with _opened(path) as file:
        reader = _Reader(file)
        _convert_errors(path, lambda: _enter_list(reader, path.name, keys))
        yield "", None
        number = 0
        try:
            for number, entry in enumerate(reader.entries()):
                yield f"{path.name} entry {number}", entry
                number += 1
            if not keys:
                reader.expect_end()
        except (ValueError, RecursionError, OSError) as error:
            yield f"{path.name} entry {number}", _not_json(error)


def _object_rows(path: Path) -> Generator[Row, None, None]:
    with _opened(path) as file:
        reader = _Reader(file)
        if _convert_errors(path, reader.peek) != "{":
            raise UserError(f"{path.name} is not in the layout: it must hold an object, got {_kind(reader.peek())}")
        yield "", None
        number = 0
        try:
            for number, key in enumerate(reader.object_keys()):
                yield f"{path.name} {key}", (key, reader.value())
                number += 1
            reader.expect_end()
        except (ValueError, RecursionError, OSError) as error:
            yield f"{path.name} entry {number}", _not_json(error)


def _opened(path: Path) -> IO[str]:
    try:
        return path.open(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {type(error).__name__}") from None


def _convert_errors(path: Path, read: Any) -> Any:
    try:
        return read()
    except (UnicodeError, OSError) as error:
        raise UserError(f"{path.name} cannot be read: {type(error).__name__}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path.name} cannot be read as JSON: {error}") from None


def _not_json(error: Exception) -> UserError:
    return UserError(f"not valid JSON, the rest of the file is not read: {error}")


def _enter_list(reader: _Reader, name: str, keys: tuple[str, ...]) -> None:
    """Move to the start of the list at the path of `keys`."""
    for key in keys:
        if reader.peek() != "{" or not reader.find(key):
            raise UserError(f"{name} is not in the layout: it must hold an object with {key}")
    if reader.peek() != "[":
        raise UserError(f"{name} is not in the layout: it must hold a list, got {_kind(reader.peek())}")


def _kind(first: str) -> str:
    kinds = {"{": "dict", "[": "list", '"': "str", "t": "bool", "f": "bool", "n": "NoneType", "": "nothing"}
    return kinds.get(first, "a number" if first in "-0123456789" else f"{first!r}")


class _Reader:
    """A position in JSON text that is read in chunks. Raises ValueError where the text is not JSON."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._before = 0  # characters of the file before `_text`
        self._is_end = False

    def _read_more(self) -> None:
        """Drop what was used, and read at least as much as is left, so that long entries are not decoded often."""
        self._before += self._at
        left = self._text[self._at :]
        more = self._file.read(max(CHUNK_CHARACTERS, len(left)))
        self._text, self._at, self._is_end = left + more, 0, not more

    def peek(self) -> str:
        """Return the next character that is not white space, "" at the end of the file."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._is_end:
                return ""
            self._read_more()

    def _take(self, expected: str) -> str:
        """Move past the next character, which must be one of `expected`."""
        found = self.peek()
        if not found or found not in expected:
            wanted = " or ".join(repr(each) for each in expected)
            raise ValueError(f"expected {wanted} at character {self._before + self._at}, got {found!r:.10}")
        self._at += 1
        return found

    def value(self) -> Any:
        """Return the next value, whole."""
        self.peek()
        while True:
            try:
                found, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT_CHARACTERS
                if self._is_end or not is_cut:
                    raise ValueError(f"{error.msg} at character {self._before + error.pos}") from None
            else:
                # A number that ends where the chunk ends may go on: 1 of 12, of 1.5 or of 1e-5.
                if end + len("e-") < len(self._text) or self._is_end:
                    self._at = end
                    return found
            if len(self._text) - self._at > MAX_ENTRY_CHARACTERS:
                raise ValueError(f"an entry has over {MAX_ENTRY_CHARACTERS} characters")
            self._read_more()

    def entries(self) -> Iterator[Any]:
        """Yield the values of the list that starts here."""
        for _ in self._separated("[", "]"):
            yield self.value()

    def object_keys(self) -> Iterator[str]:
        """Yield the keys of the object that starts here. The caller must read or skip the value of each."""
        for _ in self._separated("{", "}"):
            if self.peek() != '"':
                self._take('"')
            key = self.value()
            self._take(":")
            yield key

    def find(self, key: str) -> bool:
        """Move to the value of a key of the object that starts here. Return False at its end."""
        for found in self.object_keys():
            if found == key:
                return True
            self.skip()
        return False

    def _separated(self, opening: str, closing: str) -> Iterator[None]:
        self._take(opening)
        if self.peek() != closing:
            yield None
            while self._take("," + closing) == ",":
                yield None
        else:
            self._take(closing)

    def skip(self) -> None:
        """Move past the next value, holding one entry of a list or object at a time."""
        first = self.peek()
        if first == "[":
            for _ in self.entries():
                pass
        elif first == "{":
            for _ in self.object_keys():
                self.skip()
        else:
            self.value()

    def expect_end(self) -> None:
        if self.peek():
            raise ValueError(f"more text after the end, at character {self._before + self._at}")
