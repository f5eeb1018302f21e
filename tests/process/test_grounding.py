from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.process.grounding import (
    LabeledBoxes,
    box_to_999,
    box_to_pixels,
    boxes_in_pixels,
    format_boxes,
    parse_strict,
    parse_tolerant,
    to_999,
    to_pixels,
)

VALUE = st.integers(0, 999)
BOX = st.tuples(VALUE, VALUE, VALUE, VALUE)
LABEL = st.text(st.characters(exclude_characters="<|>", codec="utf-8"), max_size=12).map(str.strip)
NOISE = st.lists(
    st.sampled_from(["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[", "]]", "[", "]", ",", "1, 2, 3, 4", " ", "x"]),
    max_size=40,
).map("".join)


def test_boxes_are_written_as_the_model_was_trained():
    text = format_boxes("the red mug", [(1, 2, 3, 4), (5, 6, 7, 999)])
    assert text == "<|ref|>the red mug<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 999]]<|/det|>"


@given(st.lists(st.tuples(LABEL, st.lists(BOX, min_size=1, max_size=4)), max_size=4))
def test_written_boxes_are_read_back_by_both_parsers(entries):
    text = " and ".join(format_boxes(label, boxes) for label, boxes in entries)
    expected = [LabeledBoxes(label=label, boxes=tuple(boxes)) for label, boxes in entries]
    assert parse_strict(text) == expected
    assert parse_tolerant(text) == expected


@given(st.floats(0, 1), st.integers(1, 20000))
def test_a_coordinate_survives_the_round_trip_within_one_unit(fraction, extent):
    x = fraction * extent
    assert abs(to_pixels(to_999(x, extent), extent) - x) <= extent / 999
    assert 0 <= to_999(x, extent) <= 999


@given(VALUE, st.integers(1, 20000))
def test_a_value_survives_pixels_exactly(value, extent):
    assert to_999(to_pixels(value, extent), extent) == value


def test_coordinates_outside_the_image_are_clamped():
    assert box_to_999((-5, 0, 200, 50), (100, 50)) == (0, 0, 999, 999)
    assert box_to_pixels((0, 0, 999, 999), (100, 50)) == (0, 0, 100, 50)


@pytest.mark.parametrize("boxes", [[], [(1, 2, 3)], [(1, 2, 3, 1000)], [(-1, 2, 3, 4)], [(1.5, 2, 3, 4)]])
def test_bad_boxes_are_not_written(boxes):
    with pytest.raises(UserError):
        format_boxes("x", boxes)


def test_a_label_with_tags_is_not_written():
    with pytest.raises(UserError, match="tags"):
        format_boxes("a<|det|>b", [(1, 2, 3, 4)])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("<|det|>[[1, 2, 3, 4]]<|/det|>", r"expected <\|ref\|> at character 0"),
        ("<|ref|>a<|/ref|>", "at character 8 is not followed"),
        ("<|ref|>a<|/ref|> here <|det|>[[1, 2, 3, 4]]<|/det|>", "found other text"),
        ("<|ref|>a<|/ref|><|det|><|/det|>", r"expected \[ at character 23"),
        ("<|ref|>a<|/ref|><|det|>[]<|/det|>", "expected a box"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3]]<|/det|>", "expected a box"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 1000]]<|/det|>", "expected a box"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]<|/det|>", "expected a comma, or ]"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4],]<|/det|>", "expected a box"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]] x<|/det|>", "expected a comma, or ]"),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 4]]", "not followed"),
    ],
)
def test_the_strict_parser_says_where_and_what(text, why):
    with pytest.raises(UserError, match=why) as caught:
        parse_strict(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no boxes", []),
        ("<|ref|>a<|/ref|><|det|>[[1,2,3,4],[5, 6, 7", [("a", (1, 2, 3, 4))]),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3], [5, 6, 7, 8]]<|/det|>", [("a", (5, 6, 7, 8))]),
        ("<|ref|>a<|/ref|><|det|>[[1, 2, 3, 1000], [5, 6, 7, 8]]<|/det|>", [("a", (5, 6, 7, 8))]),
        ("<|ref|>a<|/ref|><|det|>[5, 6, 7, 8]<|/det|>", [("a", (5, 6, 7, 8))]),
        ("<|det|>[[5, 6, 7, 8]]<|/det|>", [("", (5, 6, 7, 8))]),
        ("<|ref|>a<|ref|>b<|/ref|><|det|>[[5, 6, 7, 8]]<|/det|>", [("b", (5, 6, 7, 8))]),
        ("<|ref|>a<|/ref|><|det|>__import__('os')<|/det|>", []),
        ("<|ref|>a<|/ref|><|det|>[[-1, 2, 3, 4], [1.5, 2, 3, 4]]<|/det|>", []),
        ("[[1, 2, 3, 4]]", []),
    ],
)
def test_the_tolerant_parser_keeps_complete_boxes(text, expected):
    assert [(entry.label, box) for entry in parse_tolerant(text) for box in entry.boxes] == expected


@given(st.one_of(st.text(max_size=60), NOISE))
def test_the_tolerant_parser_never_raises(text):
    for entry in parse_tolerant(text):
        assert all(0 <= value <= 999 for box in entry.boxes for value in box)


@given(NOISE)
def test_what_the_strict_parser_accepts_the_tolerant_one_reads_alike(text):
    try:
        strict = parse_strict(text)
    except UserError:
        return
    tolerant = parse_tolerant(text)
    assert [entry.boxes for entry in tolerant] == [entry.boxes for entry in strict]


@pytest.mark.parametrize(
    "piece", ["<|ref|>", "<|det|>", "[", "[1,", "[1, 2, 3, ", "<|det|>[[1,2,3,4", " ", "<|det|>[" + " " * 50, "9" * 50]
)
def test_parsing_hostile_text_takes_linear_work(piece):
    # Half a million characters: anything quadratic would not end within the test run.
    text = "<|ref|>a<|/ref|><|det|>" + piece * (500_000 // len(piece))
    parse_tolerant(text)
    with pytest.raises(UserError):
        parse_strict(text)


def test_each_box_of_a_label_is_placed_in_its_image():
    text = "See " + format_boxes("cup", [(0, 0, 999, 999), (100, 200, 300, 400)])
    boxes = boxes_in_pixels(text, [(10, 10), (1998, 999)], image_index=1)
    assert [(box.label, box.xyxy_999, box.image_index) for box in boxes] == [
        ("cup", (0, 0, 999, 999), 1),
        ("cup", (100, 200, 300, 400), 1),
    ]
    assert boxes[1].xyxy_px == (200, 200, 600, 400)


def test_boxes_need_an_image():
    text = format_boxes("cup", [(1, 2, 3, 4)])
    assert boxes_in_pixels(text, []) == []
    with pytest.raises(UserError, match=r"image_index must be in 0\.\.0, got 1"):
        boxes_in_pixels(text, [(5, 5)], image_index=1)
