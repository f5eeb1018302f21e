"""Read pickles that hold plain data only: lists, tuples, dicts, texts, numbers, booleans and None.

A pickle is a program. This reader lets no instruction through that could name or call anything: every instruction is
checked against a list before the first one runs, and what remains is data. Memory is bounded by the size of the file.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

from vl2.errors import UserError

MAX_BYTES = 2**28  # of a file; its data takes several times as much memory
MAX_DEPTH = 32
# Texts that occur often are stored once and then named by a few bytes, so the data is larger than the file.
MAX_GROWTH = 64

PLAIN = frozenset(
    name
    for names in (
        "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE",
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT",
        "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8",
        "EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS",
        "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET",
    )
    for name in names.split()
)
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_NAMES = ("GLOBAL", "INST")  # instructions whose argument is the module and name to call


def read_plain_pickle(path: Path) -> Any:
    """Return the data of a pickle, tuples as lists. Raise UserError for anything but plain data."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(f"{path.name} has {size} bytes, a pickle may have {MAX_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path.name} cannot be read: {type(error).__name__}") from None
    _check_instructions(path.name, data)
    try:
        found = _NoNames(io.BytesIO(data), encoding="utf-8").load()
    except UserError:
        raise
    except Exception as error:  # damaged instructions may raise anything
        raise UserError(f"{path.name} is a damaged pickle: {_one_line(error)}") from None
    return _Plain(path.name, len(data)).copy(found, 0)


def _check_instructions(name: str, data: bytes) -> None:
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if opcode.name not in PLAIN:
                what = f" ({str(argument)[:60]!r})" if opcode.name in _NAMES else ""
                raise UserError(
                    f"{name} is refused: it is a pickle that is not plain data, with {opcode.name}{what} "
                    f"at byte {position}"
                )
            # Python's reader makes a table as long as the largest of these numbers, which counts stored values.
            if opcode.name in _PUTS and not 0 <= int(argument or 0) <= number:
                raise UserError(f"{name} is a damaged pickle: {opcode.name} {argument} at byte {position}")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{name} is not a pickle, or is damaged: {_one_line(error)}") from None


class _NoNames(pickle.Unpickler):
    """A second lock: were an instruction missed that names something, the name would still not be found."""

    def find_class(self, module: str, name: str, /) -> Any:
        raise UserError(f"a pickle of plain data must not name {module}.{name}")

    def persistent_load(self, pid: Any, /) -> Any:
        raise UserError("a pickle of plain data must not refer to other files")


class _Plain:
    """Copies nested data. Shared and cyclic parts, which a small pickle can multiply without end, use up a budget."""

    def __init__(self, name: str, num_bytes: int) -> None:
        self._name = name
        self._values = num_bytes  # an instruction has at least one byte, and makes at most one value
        self._characters = MAX_GROWTH * num_bytes

    def copy(self, value: Any, depth: int) -> Any:
        self._values -= 1
        self._characters -= len(value) if isinstance(value, str) else 0
        if self._values < 0 or self._characters < 0 or depth > MAX_DEPTH:
            raise UserError(f"{self._name} is refused: its data refers to itself, or is far larger than the file")
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            if not math.isfinite(value):
                raise UserError(f"{self._name} is refused: it holds a number that is not finite")
            return value
        if isinstance(value, list | tuple):
            return [self.copy(item, depth + 1) for item in value]
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise UserError(f"{self._name} is refused: the keys of its objects must be texts")
            return {self.copy(key, depth + 1): self.copy(item, depth + 1) for key, item in value.items()}
        raise UserError(f"{self._name} is refused: it holds a {type(value).__name__}")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
