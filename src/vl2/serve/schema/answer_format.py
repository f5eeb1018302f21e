"""`response_format` and `text.format`: what an answer must look like, and the constraint that holds it to that."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from vl2.infer.constraint import Constraint
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.constraint_json import JsonSchema
from vl2.serve.errors import ApiError
from vl2.serve.schema.base import Lenient, Name


class PlainText(Lenient):
    type: Literal["text"]


class JsonObject(Lenient):
    type: Literal["json_object"]


class NamedSchema(Lenient):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    name: Name
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None  # the schema is held to either way


class JsonSchemaFormat(Lenient):
    """The form of chat completions."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class FlatJsonSchemaFormat(NamedSchema):
    """The form of responses."""

    type: Literal["json_schema"]


ChatFormat = Annotated[PlainText | JsonObject | JsonSchemaFormat, Field(discriminator="type")]
ResponsesFormat = Annotated[PlainText | JsonObject | FlatJsonSchemaFormat, Field(discriminator="type")]


def constraint_of(
    form: PlainText | JsonObject | JsonSchemaFormat | FlatJsonSchemaFormat | None, *, well_formed_boxes: bool
) -> Constraint | None:
    """Return what the answer is held to. UserError for a schema that cannot be held to."""
    schema: dict[str, Any] | None = None
    if isinstance(form, JsonObject):
        schema = {"type": "object"}
    elif isinstance(form, JsonSchemaFormat):
        schema = form.json_schema.schema_
    elif isinstance(form, FlatJsonSchemaFormat):
        schema = form.schema_
    if schema is not None and well_formed_boxes:
        raise ApiError(400, "well_formed_boxes and a JSON format cannot both be had", param="well_formed_boxes")
    if schema is not None:
        return JsonSchema(schema)
    return WellFormedBoxes() if well_formed_boxes else None
