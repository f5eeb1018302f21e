"""The record: it checks itself, survives its own JSON, and writes boxes on the model's scale."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.data.record import Record
from vl2.errors import UserError
from vl2.process.grounding import boxes_in_pixels

GOOD: dict[str, Any] = {
    "id": "sroie-1",
    "source": "sroie",
    "category": "grounding",
    "language": "en",
    "licence": "MIT",
    "messages": [
        {"role": "user", "content": [{"type": "image", "image": 0}, {"type": "text", "text": "Locate the total."}]},
        {"role": "assistant", "content": [{"type": "text", "text": "{box:0}"}]},
    ],
    "images": [{"path": "a.png", "width": 720, "height": 1280}],
    "objects": [{"image": 0, "label": "TOTAL", "boxes_px": [[80, 1010, 190, 1040]]}],
}


def changed(*path: Any, to: Any) -> dict[str, Any]:
    values = copy.deepcopy(GOOD)
    place: Any = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return values


def test_a_record_survives_its_own_json() -> None:
    record = Record.from_dict(GOOD)
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
    with_bytes = Record.from_dict(changed("images", 0, to={"bytes": "AAEC/w==", "width": 720, "height": 1280}))
    assert with_bytes.images[0].data == b"\x00\x01\x02\xff"
    assert Record.from_dict(json.loads(json.dumps(with_bytes.to_dict()))) == with_bytes
    assert with_bytes.to_dict(encode_bytes=False)["images"][0]["bytes"] == b"\x00\x01\x02\xff"


def test_boxes_are_written_on_the_models_scale() -> None:
    asked, answered = Record.from_dict(GOOD).to_turns(["picture"])
    assert asked.images == ("picture",)
    assert answered.text == "<|ref|>TOTAL<|/ref|><|det|>[[111, 788, 264, 812]]<|/det|>"


def test_without_objects_a_placeholder_is_text() -> None:
    values = changed("objects", to=[])
    assert Record.from_dict(values).to_turns(["p"])[1].text == "{box:0}"


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
@settings(derandomize=True, deadline=None)
def test_a_box_comes_back_within_one_unit_at_any_image_size(size: tuple[int, int], corners: list[float]) -> None:
    width, height = size
    (x0, x1), (y0, y1) = sorted(c * width for c in corners[:2]), sorted(c * height for c in corners[2:])
    values = changed("images", 0, to={"path": "a.png", "width": width, "height": height})
    values["objects"][0]["boxes_px"] = [[x0, y0, x1, y1]]
    (box,) = boxes_in_pixels(Record.from_dict(values).with_boxes("{box:0}"), [size], 0)
    for ours, given_px, extent in zip(box.xyxy_px, (x0, y0, x1, y1), (*size, *size), strict=True):
        assert abs(ours - given_px) <= extent / 999


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (None, "a record must be an object, got NoneType"),
        ([], "a record must be an object, got list"),
        (changed("id", to=""), "id must not be empty"),
        (changed("id", to=5), "id must be a text, got int"),
        (changed("licence", to=None), "licence must be a text, got nothing"),
        (changed("category", to="pets"), "category must be one of caption, .*, got 'pets'"),
        (changed("extra", to=1), "unknown key 'extra': a record has id, source"),
        (changed("messages", to=[]), "a record must have messages"),
        (changed("messages", to="hi"), "messages must be a list, got str"),
        (changed("messages", 1, "role", to="bot"), "role must be one of system, user, assistant, document, got 'bot'"),
        (changed("messages", 1, "role", to="document"), "a document must be the only message, got 2 messages"),
        (changed("messages", to=[{"role": "document", "content": " "}]), "a document must contain text"),
        (changed("messages", 1, "role", to="user"), "the last message must be from the assistant"),
        (changed("messages", 1, "content", to=[]), "the assistant message must not be empty"),
        (changed("messages", 1, "content", to=3), "message 1: content must be a text or a list of parts, got int"),
        (changed("messages", 0, "content", 0, to={"type": "audio"}), "message 0: a part must be a text or an image"),
        (changed("messages", 0, "content", 0, "image", to="0"), "the image of a part must be a whole number"),
        (
            changed("messages", 0, "content", 0, "image", to=1),
            r"use the images \[0\] once each and in order, got \[1\]",
        ),
        (changed("images", to=[]), r"use the images \[\] once each and in order, got \[0\]"),
        (changed("images", 0, to={"width": 1, "height": 1}), "either bytes or a path"),
        (changed("images", 0, to={"bytes": "%%", "width": 1, "height": 1}), "image 0: bytes are not valid base64"),
        (changed("images", 0, "width", to=0), "sides must be at least 1 px, got 0 x 1280"),
        (changed("images", 0, "width", to=1.5), "image 0: width must be a whole number, got 1.5"),
        (changed("objects", 0, "image", to=2), "object 0 is in image 2, there are 1"),
        (changed("objects", 0, "label", to=" "), "an object must have a label"),
        (changed("objects", 0, "label", to="a<|det|>"), "must not contain grounding tags"),
        (changed("objects", 0, "boxes_px", 0, to=[1, 2, 10**400, 4]), "a box must be four finite numbers"),
        (changed("objects", 0, "boxes_px", to=[]), "names an object without boxes"),
        (changed("objects", 0, "boxes_px", 0, to=[1, 2, 3]), "a box must be four finite numbers"),
        (changed("objects", 0, "boxes_px", 0, to=[1, 2, float("nan"), 4]), "a box must be four finite numbers"),
        (changed("objects", 0, "boxes_px", 0, to=[9, 2, 3, 4]), "x0 <= x1 and y0 <= y1"),
        (changed("objects", 0, "boxes_px", 0, to=[9, 2, 721, 4]), "leaves its image of 720 x 1280 px"),
        (changed("messages", 1, "content", to="see {box:7}"), r"\{box:7\} names no object, there are 1"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(values: Any, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        Record.from_dict(values)
    assert "\n" not in str(caught.value)
