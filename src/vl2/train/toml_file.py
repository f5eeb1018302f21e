"""Convert frozen dataclasses from and to TOML tables. The types of the fields are the schema.

An unknown key raises a UserError that suggests the nearest known key; a value of the wrong type raises one that names
the expected type. Written TOML reads back as an equal value. Fields that are None are left out, because TOML has no
null.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vl2.errors import UserError, name_hint

T = TypeVar("T")
_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def from_table(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Make a dataclass from a table. `where` is the dotted name of the table for messages.

    Raise UserError for an unknown key, a missing value or a wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cast("Any", kind))}
    refuse_unknown(table, list(fields), where)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name in table:
            values[name] = from_value(hints[name], table[name], _join(where, name))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if type(None) not in get_args(hints[name]):
                raise UserError(f"{_join(where, name)} is missing")
            values[name] = None
    return kind(**values)


def refuse_unknown(table: Mapping[str, Any], known: Sequence[str], where: str = "") -> None:
    """Raise UserError, with the nearest known key, if a table has an unknown key."""
    for name in table:
        if name not in known:
            raise UserError(f"unknown key {_join(where, name)}: {name_hint(name, known)}")


def from_value(hint: Any, value: Any, where: str) -> Any:
    """Convert a TOML value to the type of a field. Raise UserError if it has another type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hasattr(hint, "__metadata__"):  # Annotated
        return from_value(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        (inner,) = (argument for argument in arguments if argument is not type(None))
        return from_value(inner, value, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{where} must be a list, got {value!r}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise UserError(f"{where} must have {len(kinds)} values, got {len(value)}")
        return tuple(
            from_value(kind, one, f"{where}[{i}]") for i, (kind, one) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table, got {value!r}")
        return {
            from_value(arguments[0], k, where): from_value(arguments[1], v, _join(where, k)) for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where} must be a table, got {value!r}")
        return from_table(cast("type[Any]", hint), value, where)
    return _scalar(hint, value, where)


def _scalar(kind: type, value: Any, where: str) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number and math.isfinite(value):
        return float(value)
    if type(value) is kind and kind is not float:
        return value
    raise UserError(f"{where} must be {_NAMES[kind]}, got {value!r}")


def to_toml(value: Any) -> str:
    """Return a dataclass as TOML: plain values first, then its tables."""
    return "\n".join(_table(_plain(value), "")).strip() + "\n"


def _plain(value: Any) -> Any:
    """Convert to nested dicts, lists and scalars, without None values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
        return {name: _plain(one) for name, one in pairs if one is not None}
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(one, dict | list) for one in value.values())


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _table(table: Mapping[str, Any], name: str) -> list[str]:
    """Return the lines of a table. A nested table of scalars only is written inline."""
    lines = [
        f"{_key(key)} = {_inline(value)}"
        for key, value in table.items()
        if not _is_tables(value) and not (isinstance(value, dict) and (not name or _is_table(value)))
    ]
    for key, value in table.items():
        path = _join(name, _key(key))
        if _is_tables(value):
            for one in value:
                lines += ["", f"[[{path}]]", *_table(one, path)]
        elif isinstance(value, dict) and (not name or _is_table(value)):
            lines += ["", f"[{path}]", *_table(value, path)]
    return lines


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {_inline(one)}' for key, one in value.items())}}}"
    return repr(value)


def _key(name: str) -> str:
    is_bare = bool(name) and all(c.isascii() and (c.isalnum() or c in "-_") for c in name)
    return name if is_bare else json.dumps(name, ensure_ascii=False)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
