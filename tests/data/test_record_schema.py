"""docs/record.schema.json and Record.from_dict accept and refuse the same records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.data.sample_records import good_records, page, two_images
from tests.data.test_record import GOOD, changed
from vl2.data.record import CATEGORIES, Record
from vl2.errors import UserError

jsonschema = pytest.importorskip("jsonschema")

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "record.schema.json").read_text(encoding="utf-8"))


def is_valid(values: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(SCHEMA).is_valid(values))


def refusal(values: Any) -> str | None:
    try:
        Record.from_dict(values)
    except UserError as error:
        return str(error)
    return None


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


# Rules over several values, which the code checks and a schema cannot.
SEEN_BY_CODE = "messages must use the images|the last message must be|a document must"

TEXT_PART = {"type": "text", "text": "hi"}
IMAGE_PART = {"type": "image", "image": 0}
SIZE = {"width": 720, "height": 1280}

ALIKE: list[Any] = [
    GOOD,
    *(record.to_dict() for record in [*good_records(4), two_images("x"), page("y")]),
    *(changed("category", to=category) for category in (*CATEGORIES, "pets", "", None, 5)),
    *(without(key) for key in GOOD),
    *(changed(key, to=value) for key in GOOD for value in (None, "", " ", 5, [], {}, True)),
    *(changed("messages", 1, "role", to=role) for role in ("system", "document", "bot", None, 1)),
    *(changed("messages", 1, "content", to=c) for c in ("hi", "", [], None, 3, {}, [TEXT_PART], [TEXT_PART] * 2)),
    *(changed("messages", 1, "content", to=[part]) for part in ({}, "x", {"type": "text"}, {"type": "audio"}, None)),
    changed("messages", 1, "content", to=[IMAGE_PART]),
    changed("messages", 0, "content", 1, to={"type": "text", "text": 5}),
    *(changed("messages", 0, "content", 0, "image", to=value) for value in ("0", None, -1, 0.5, True)),
    *(changed("images", 0, side, to=value) for side in SIZE for value in (0, -1, 1.5, "9", None, True)),
    *(changed("images", 0, to={"bytes": data, **SIZE}) for data in ("AAAA", "AAA=", "AA==", "", "%%", "AAA", 5, None)),
    changed("images", 0, to=SIZE),
    changed("images", 0, to={"bytes": "AAAA", "path": "x", **SIZE}),
    changed("images", 0, to={"bytes": None, "path": "x", **SIZE}),
    changed("images", 0, to={"path": 5, **SIZE}),
    changed("images", 0, to="a.png"),
    *(changed("objects", 0, "label", to=value) for value in (" ", "", None, 3)),
    *(changed("objects", 0, "image", to=value) for value in (-1, "0", None, 0.5)),
    *(changed("objects", 0, "boxes_px", to=value) for value in (None, "x", [5], [[]], [[1, 2, 3]], [[1, 2, 3, "4"]])),
    changed("objects", 0, "boxes_px", 0, to=[-1, 2, 3, 4]),
    changed("objects", 0, "boxes_px", 0, to=[1, 2, 3, None]),
    *(changed("messages", 1, "evidence", to=value) for value in ([], [0], None, "0", [-1], ["0"], [0.5], [True], {})),
    {**GOOD, "extra": 1},
    None, [], "x", 5,
]  # fmt: skip

# What a schema cannot say (docs/record.md lists it): valid by the schema, and no record.
ONLY_THE_CODE: list[Any] = [
    changed("messages", 1, "role", to="user"),
    changed("messages", 1, "evidence", to=[1]),
    changed("messages", 0, "evidence", to=[0]),
    changed("images", to=[]),
    changed("messages", 0, "content", 0, "image", to=1),
    changed("objects", 0, "image", to=2),
    changed("objects", 0, "boxes_px", to=[]),
    changed("objects", 0, "boxes_px", 0, to=[9, 2, 3, 4]),
    changed("objects", 0, "boxes_px", 0, to=[9, 2, 721, 4]),
    changed("messages", 1, "content", to="see {box:7}"),
    changed("images", 0, "width", to=720.0),
]


def test_the_schema_is_a_schema_and_names_every_key_and_category() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert list(SCHEMA["properties"]) == list(Record.__dataclass_fields__)
    assert SCHEMA["properties"]["category"]["enum"] == list(CATEGORIES)


def test_the_schema_and_the_code_agree() -> None:
    for values in ALIKE:
        why = refusal(values)
        if is_valid(values):
            assert why is None or re.match(SEEN_BY_CODE, why), (values, why)
        else:
            assert why is not None, values
    assert 15 < sum(map(is_valid, ALIKE)) < len(ALIKE) - 15


def test_what_only_the_code_can_see_passes_the_schema() -> None:
    for values in ONLY_THE_CODE:
        assert is_valid(values), values
        assert refusal(values) is not None, values


def test_the_specification_shows_a_record_and_names_every_category() -> None:
    page = (DOCS / "record.md").read_text(encoding="utf-8")
    example = json.loads(page.split("```json\n")[1].split("```")[0])
    assert is_valid(example)
    assert refusal(example) is None
    assert all(f"`{category}`" in page for category in CATEGORIES)
