"""Turn settings that users write, in TOML or as NAME=VALUE, into typed arguments of a class or function.

An unknown name raises a UserError that suggests the nearest known name; a value of the wrong type raises one that
names the expected type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from vl2.errors import UserError, name_hint

Values = Mapping[str, Any]


def split_setting(text: str) -> tuple[str, str]:
    """Split NAME=VALUE into the name and the value. Raise UserError if there is no "="."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set takes NAME=VALUE, got {text!r}")
    return name, value


def settings_of(target: Callable[..., Any], *, without: Collection[str] = ()) -> list[str]:
    """Return the names of the parameters of a class or function, except those in `without`."""
    return [name for name in inspect.signature(target).parameters if name not in without]


def arguments(
    target: Callable[..., Any], values: Values, what: str, *, without: Collection[str] = ()
) -> dict[str, Any]:
    """Convert values to the types that the parameters of a class or function declare.

    A string is parsed where a number, a bool or a comma-separated list is expected, so that NAME=VALUE works. `what`
    names the target in errors. Raise UserError for an unknown name, a wrong type or a missing required setting.
    """
    known = settings_of(target, without=without)
    hints = get_type_hints(target.__init__ if inspect.isclass(target) and not _is_dataclass(target) else target)
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise UserError(f"{what} has no setting {name}: {name_hint(name, known)}")
        checked[name] = _as_type(value, hints.get(name, str), f"{name} of {what}")
    missing = [
        name
        for name, parameter in inspect.signature(target).parameters.items()
        if name in known and parameter.default is inspect.Parameter.empty and name not in checked
    ]
    if missing:
        raise UserError(f"{what} needs the setting {missing[0]}")
    return checked


def _is_dataclass(target: Any) -> bool:
    return hasattr(target, "__dataclass_fields__")


def _as_type(value: Any, wanted: Any, what: str) -> Any:
    if get_origin(wanted) is tuple or wanted is tuple:
        item = (get_args(wanted) or (str,))[0]
        items = [part for part in value.split(",") if part] if isinstance(value, str) else value
        if not isinstance(items, list | tuple):
            raise UserError(f"{what} must be a list, got {value!r}")
        return tuple(_as_type(each, item, what) for each in items)
    options = [each for each in get_args(wanted) if each is not type(None)]
    if options and type(None) in get_args(wanted):
        return None if value is None else _as_type(value, options[0], what)
    if wanted is bool:
        return _as_bool(value, what)
    if wanted in (int, float):
        return _as_number(value, wanted, what)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is str and not isinstance(value, str):
        raise UserError(f"{what} must be a text, got {value!r}")
    return value


def _as_bool(value: Any, what: str) -> bool:
    if value in (True, "true", "yes", "1"):
        return True
    if value in (False, "false", "no", "0"):
        return False
    raise UserError(f"{what} must be true or false, got {value!r}")


def _as_number(value: Any, kind: type[int] | type[float], what: str) -> int | float:
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise UserError(f"{what} must be a {'whole ' * (kind is int)}number, got {value!r}")
    try:
        return kind(value)
    except (TypeError, ValueError):
        raise UserError(f"{what} must be a {'whole ' * (kind is int)}number, got {value!r}") from None
