"""What is to be extracted: a JSON schema or a Pydantic class, the question for it, and the check of an answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema, close_schema
from vl2.optional_imports import import_named, install_extra

MAX_NAMED_FIELDS = 100  # fields that the question names


@dataclass(frozen=True, kw_only=True)
class Target:
    """The form of the objects that are extracted."""

    schema: Mapping[str, Any]
    model: Any = None  # the Pydantic class, if the target is one

    def __post_init__(self) -> None:
        kind = self.schema.get("type") if isinstance(self.schema, Mapping) else None
        if kind != "object":
            raise UserError(f'the schema to extract must have "type": "object", got {kind!r}')
        _validator(self.schema)

    @property
    def constraint(self) -> JsonSchema:
        """The schema without properties that it does not name, which a model that is lost would add forever."""
        closed = close_schema(self.schema)
        assert isinstance(closed, dict)
        return JsonSchema(closed)

    def question(self) -> str:
        """Return the question that asks for the object, with the names and descriptions of its fields."""
        lines = list(_field_lines(self.schema, self.schema))[:MAX_NAMED_FIELDS]
        about = self.schema.get("description") or self.schema.get("title")
        head = (
            f"Extract this from the document as JSON ({about}):" if about else "Extract this from the document as JSON:"
        )
        return "\n".join([head, *lines])

    def check(self, text: str) -> dict[str, Any]:
        """Return the object that an answer holds. Raise UserError if it is not one, or not a valid one."""
        try:
            value = json.loads(text)
        except ValueError:
            raise UserError("the answer is not JSON, or was cut off") from None
        failure = next(iter(_validator(self.schema).iter_errors(value)), None)
        if failure is not None:
            where = "/".join(map(str, failure.absolute_path)) or "the object"
            raise UserError(f"the answer does not fit the schema: {where}: {' '.join(failure.message.split())[:200]}")
        if self.model is not None:
            self.instance(value)
        assert isinstance(value, dict)
        return value

    def instance(self, value: Mapping[str, Any]) -> Any:
        """Return the object as an instance of the Pydantic class. Raise UserError if the class refuses it."""
        assert self.model is not None
        try:
            return self.model.model_validate(value)
        except ValueError as error:  # Pydantic's ValidationError
            first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
            where = "/".join(map(str, first["loc"])) or "the object"
            raise UserError(f"{self.model.__name__} refuses the answer: {where}: {first['msg']}") from None


def read_target(target: object) -> Target:
    """Return the target of a schema (a mapping, or the path of a JSON file) or of a Pydantic class.

    A text "package.module:Class" names a class. Raise UserError if there is none, or if it is neither.
    """
    if isinstance(target, Target):
        return target
    if isinstance(target, Mapping):
        return Target(schema=target)
    if isinstance(target, Path) or (isinstance(target, str) and not _names_class(target)):
        return Target(schema=_read_schema(Path(target)))
    if isinstance(target, str):
        target = import_named(target, "the schema")
    if not hasattr(target, "model_json_schema"):
        raise UserError(f"a target must be a JSON schema or a Pydantic class, got {type(target).__name__}")
    return Target(schema=target.model_json_schema(), model=target)


def _names_class(text: str) -> bool:
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def _read_schema(path: Path) -> Mapping[str, Any]:
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UserError(f"{path} must hold a JSON schema, which is an object, got {type(schema).__name__}")
    return schema


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema
    except ImportError:
        raise UserError(f"extraction needs jsonschema: {install_extra('extract')}") from None
    kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except jsonschema.SchemaError as error:
        raise UserError(f"the JSON schema is not valid: {' '.join(error.message.split())[:200]}") from None
    return kind(schema)


def _field_lines(schema: object, root: Mapping[str, Any], indent: str = "", depth: int = 0) -> list[str]:
    """Return a line for each property: its name, what it is, and below it the properties that it has itself."""
    schema = _resolved(schema, root)
    if depth > 3 or not isinstance(schema, Mapping):
        return []
    lines: list[str] = []
    properties = schema.get("properties")
    for name, entry in properties.items() if isinstance(properties, Mapping) else ():
        part = _resolved(entry, root)
        part = part if isinstance(part, Mapping) else {}
        about = part.get("description")
        lines.append(f"{indent}- {name}: {about}" if about else f"{indent}- {name}")
        inside = part.get("items") if part.get("type") == "array" else part
        lines += _field_lines(inside, root, indent + "  ", depth + 1)
    return lines


def _resolved(schema: object, root: Mapping[str, Any]) -> object:
    """Follow a reference within the schema, once."""
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    if not isinstance(reference, str):
        return schema
    found: object = root
    for key in reference.removeprefix("#/").split("/"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
