"""The calls that ask for boxes: by words, by an object in another image, and with guaranteed well-formed boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.reference import IMAGES, reference_vlm
from vl2.errors import UserError
from vl2.infer.prefill import Reuse
from vl2.infer.prompts import locate_like_prompt, mark_object
from vl2.process.grounding import Box, parse_strict

PHOTO = IMAGES / "photo640x480.png"


def test_an_object_is_marked_around_its_box_and_nowhere_else() -> None:
    image = Image.new("RGB", (200, 100), "white")
    marked = np.asarray(mark_object(image, (50, 20, 120, 80)))
    is_red = (marked == (255, 0, 0)).all(axis=-1)
    assert is_red.any()
    assert (marked[21:80, 51:120] == 255).all()  # the object itself stays as it is
    assert not is_red[:, :47].any()
    assert not is_red[:, 124:].any()
    assert np.asarray(image).min() == 255  # a copy is drawn on


@pytest.mark.parametrize(
    "box", [(0, 0, 201, 50), (50, 20, 50, 80), (60, 20, 50, 80), (-1, 0, 5, 5), (1, 2, 3), (0, 0, float("nan"), 5)]
)
def test_a_box_outside_the_image_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="a box must"):
        mark_object(Image.new("RGB", (200, 100)), box)


def test_like_another_object_is_the_same_as_asking_about_both_images() -> None:
    vlm = reference_vlm("base")
    marked = mark_object(PHOTO, (10, 10, 200, 150))
    reply = vlm.chat(locate_like_prompt(), [marked, PHOTO], max_new_tokens=40)
    assert vlm.locate_like(PHOTO, (10, 10, 200, 150), PHOTO, max_new_tokens=40) == reply.boxes
    assert locate_like_prompt().startswith("<|grounding|>")


@pytest.mark.parametrize("encoder_bytes", [0, 64 << 20])
def test_many_queries_encode_the_image_once_and_change_no_answer(
    encoder_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = reference_vlm("base")
    encode, passes = vlm.runner.encode, []

    def count(*arguments: Any) -> Any:
        passes.append(arguments)
        return encode(*arguments)

    monkeypatch.setattr(vlm.runner, "encode", count)
    options: dict[str, Any] = {"constrained": True, "max_new_tokens": 40}
    queries = ["a cup", "the red car", "a cup", "a dog"]
    monkeypatch.setattr(vlm, "reuse", Reuse(encoder_bytes=0, prefix_bytes=0))
    single = [vlm.locate(query, PHOTO, **options) for query in queries]
    assert passes
    assert len(passes) % len(queries) == 0
    num_passes = len(passes) // len(queries)
    passes.clear()
    monkeypatch.setattr(vlm, "reuse", Reuse(encoder_bytes=encoder_bytes, prefix_bytes=0))
    assert [reply.boxes for reply in vlm.locate_all(queries, PHOTO, **options)] == single
    assert len(passes) == num_passes


@pytest.mark.parametrize("queries", [[], "a cup", ["a cup", ""]])
def test_queries_are_a_list_of_descriptions(queries: Any) -> None:
    with pytest.raises(UserError, match="quer"):
        reference_vlm("base").locate_all(queries, PHOTO)


def test_the_center_of_a_box_is_in_pixels() -> None:
    box = Box(label="a", xyxy_999=(0, 0, 1, 1), xyxy_px=(10.0, 20.0, 31.0, 80.0), image_index=0)
    assert box.center_px == (20.5, 50.0)


def test_constrained_answers_are_read_by_the_strict_parser() -> None:
    vlm = reference_vlm("base")
    reply = vlm.describe(PHOTO, grounded=True, constrained=True, max_new_tokens=80, temperature=2.0, seed=3)
    entries = parse_strict(reply.text)
    assert [box.xyxy_999 for box in reply.boxes] == [box for entry in entries for box in entry.boxes]
    for box in vlm.locate("a cup", PHOTO, constrained=True, max_new_tokens=80, temperature=2.0, seed=3):
        assert box.xyxy_px[0] <= box.xyxy_px[2]
        assert box.xyxy_px[1] <= box.xyxy_px[3]
