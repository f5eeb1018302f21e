"""`ask`, `describe` and `locate` on golden checkpoints: what goes to stdout, and what does not."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vl2.cli.answer import strip_stream
from vl2.cli.flags import print_json, read_text
from vl2.errors import UserError
from vl2.infer.prompts import describe_prompt, locate_prompt
from vl2.infer.reply import Reply, Usage
from vl2.infer.sequence import Limits
from vl2.infer.vlm import VLM, load

from ..reference import CHECKPOINTS, IMAGES

SMALL = CHECKPOINTS / "small"  # tiles of 98 px
PHOTO, WIDE = IMAGES / "photo640x480.png", IMAGES / "wide1500x400.png"
FLAGS = ("-m", SMALL, "--device", "cpu", "--max-new-tokens", "12")
KEYS = {"text", "boxes", "token_ids", "finish_reason", "usage"}


@cache
def vlm() -> VLM:
    return load(SMALL, device="cpu")


def reply_to(text: str, images: Sequence[Any] = (), **options: Any) -> Reply:
    return vlm().chat(text, list(images), **{"max_new_tokens": 12, **options})


def test_only_the_answer_goes_to_stdout(vl2):
    ran = vl2("ask", "hello", *FLAGS)
    assert (ran.code, ran.out, ran.err) == (0, reply_to("hello").text + "\n", "")


def test_two_images_are_seen_in_their_order(vl2):
    ran = vl2("ask", "hello", "-i", PHOTO, "-i", WIDE, *FLAGS)
    assert (ran.code, ran.out) == (0, reply_to("hello", [PHOTO, WIDE]).text + "\n")
    assert reply_to("hello", [PHOTO, WIDE]).text != reply_to("hello", [WIDE, PHOTO]).text


def test_the_built_in_model_answers_with_nothing_on_stderr(vl2):
    ran = vl2("ask", "hello", "--max-new-tokens", "3", "--device", "cpu")
    assert (ran.code, ran.err) == (0, "")


@pytest.mark.parametrize(
    ("command", "prompt"),
    [
        (("ask", "hello"), "hello"),
        (("describe",), describe_prompt(grounded=False)),
        (("describe", "--grounded"), describe_prompt(grounded=True)),
        (("locate", "a red mug"), locate_prompt("a red mug")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_json_holds_the_reply_of_the_library(vl2, command, prompt):
    ran = vl2(*command, "-i", PHOTO, "--json", "--quiet", *FLAGS)
    assert (ran.code, ran.err) == (0, "")
    answer = json.loads(ran.out)
    assert answer.keys() == KEYS
    assert answer["usage"].keys() == {"prompt_tokens", "visual_tokens", "completion_tokens"}
    assert answer == reply_to(prompt, [PHOTO]).to_dict()


def test_an_image_comes_from_stdin(vl2):
    ran = vl2("ask", "hello", "-i", "-", *FLAGS, stdin=PHOTO.read_bytes())
    assert (ran.code, ran.out, ran.err) == (0, reply_to("hello", [PHOTO]).text + "\n", "")


def test_a_question_comes_from_stdin(vl2):
    ran = vl2("ask", "-", "-i", PHOTO, *FLAGS, stdin=b"hello\n")
    assert (ran.code, ran.out, ran.err) == (0, reply_to("hello", [PHOTO]).text + "\n", "")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_a_question_on_stdin_is_utf8_whatever_the_locale_is(monkeypatch, encoding):
    def given(data: bytes) -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding=encoding))
        return read_text("-")

    assert given("Größe? 总金额\r\n".encode("utf-8-sig")) == "Größe? 总金额\n"
    with pytest.raises(UserError, match="not text"):
        given(b"\xff")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(UserError, match="no stdin"):
        read_text("-")


def test_an_image_comes_as_a_data_url(vl2):
    url = "data:image/png;base64," + base64.b64encode(PHOTO.read_bytes()).decode()
    assert vl2("ask", "hello", "-i", url, *FLAGS).out == reply_to("hello", [PHOTO]).text + "\n"


def test_a_photo_that_the_camera_turned_is_turned_once(vl2, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    with Image.open(WIDE) as picture:
        picture.convert("RGB").save(path, exif=exif)
    for command in (("ask", "hello"), ("locate", "a dog")):
        prompt = "hello" if command[0] == "ask" else locate_prompt("a dog")
        answer = json.loads(vl2(*command, "-i", path, "--json", *FLAGS).out)
        assert answer == reply_to(prompt, [path]).to_dict()
    vl2("ask", "hello", "-i", path, "--draw", tmp_path / "drawn.png", *FLAGS)
    with Image.open(tmp_path / "drawn.png") as drawn:
        assert drawn.size == (400, 1500)


def test_the_flags_of_generation_reach_the_model(vl2):
    flags = ("--temperature", "1.5", "--seed", "7", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.001",
             "--repetition-penalty", "1.2", "--no-repeat-ngram-size", "2")  # fmt: skip
    ran = vl2("ask", "hello", *flags, *FLAGS)
    options = {"temperature": 1.5, "seed": 7, "top_k": 50, "top_p": 0.9, "min_p": 0.001}
    expected = reply_to("hello", **options, repetition_penalty=1.2, no_repeat_ngram_size=2)
    assert ran.out == expected.text + "\n"
    assert expected.text != reply_to("hello").text


def test_a_stop_text_ends_the_answer_before_it(vl2):
    word = reply_to("hello").text[6:10]
    answer = json.loads(vl2("ask", "hello", "--stop", word, "--json", *FLAGS).out)
    assert answer["finish_reason"] == "stop"
    assert answer["text"] == reply_to("hello").text.partition(word)[0].strip()


def test_a_system_prompt_changes_the_prompt(vl2):
    answer = json.loads(vl2("ask", "hello", "--system", "Be brief.", "--json", *FLAGS).out)
    assert answer == reply_to("hello", system="Be brief.").to_dict()
    assert answer["usage"]["prompt_tokens"] > reply_to("hello").usage.prompt_tokens


def test_chunked_prefill_and_other_types_answer_too(vl2):
    whole = vl2("ask", "hello", "-i", PHOTO, *FLAGS)
    assert vl2("ask", "hello", "-i", PHOTO, "--prefill-chunk", "7", *FLAGS).out == whole.out
    assert vl2("ask", "hello", "--dtype", "bfloat16", *FLAGS).code == 0


@pytest.mark.parametrize(
    "pieces",
    [[], [""], [" ", "\n"], [" a", "b ", " ", "c\n", "\n", " "], ["\n", "a"], ["a", " ", "", "b", " c "]],
)
def test_the_stream_in_all_is_the_stripped_text(pieces):
    assert "".join(strip_stream(pieces)) == "".join(pieces).strip()


def test_the_stream_gives_each_piece_at_once():
    given = strip_stream(iter(["one", " two", " ", "three"]))
    assert [next(given), next(given)] == ["one", " two"]


@dataclass
class FixedAnswer:
    """Stands for a trained model that grounds: always gives the same text."""

    text: str
    limits: Limits = field(default_factory=Limits)

    def chat(self, text: str, images: Sequence[Image.Image], **options: Any) -> Reply:
        (image,) = images
        usage = Usage(prompt_tokens=1, visual_tokens=1, completion_tokens=1)
        return Reply(text=self.text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=(image.size,))

    def locate_all(self, queries: Sequence[str], image: Image.Image, **options: Any) -> list[Reply]:
        return [self.chat(query, [image]) for query in queries]


@pytest.fixture
def answering(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda text: monkeypatch.setattr("vl2.infer.vlm.load", lambda *_, **__: FixedAnswer(text))


TWO_BOXES = "<|ref|>a red\nmug<|/ref|><|det|>[[0, 0, 500, 999], [999, 999, 999, 999]]<|/det|>"


def test_boxes_are_printed_in_pixels_one_a_line(vl2, answering):
    answering(TWO_BOXES)
    ran = vl2("locate", "a red mug", "-i", PHOTO)
    assert ran.out == "0.0 0.0 320.3 480.0 a red mug\n640.0 480.0 640.0 480.0 a red mug\n"
    assert (ran.code, ran.err) == (0, "")


def test_boxes_come_as_json_with_both_scales(vl2, answering):
    answering(TWO_BOXES)
    boxes = json.loads(vl2("locate", "a red mug", "-i", PHOTO, "--json").out)["boxes"]
    assert boxes[0] == {
        "label": "a red\nmug",
        "xyxy_px": [0.0, 0.0, 320.3, 480.0],
        "center_px": [160.2, 240.0],
        "xyxy_999": [0, 0, 500, 999],
        "image_index": 0,
    }


def test_points_are_the_pixels_in_the_centers(vl2, answering):
    answering(TWO_BOXES)
    ran = vl2("locate", "a red mug", "-i", PHOTO, "--points")
    assert (ran.code, ran.out, ran.err) == (0, "160 240 a red mug\n639 479 a red mug\n", "")


def test_several_queries_are_answered_in_order(vl2, answering):
    answering(TWO_BOXES)
    ran = vl2("locate", "a red mug", "a cup", "-i", PHOTO)
    assert ran.out == "0.0 0.0 320.3 480.0 a red mug\n640.0 480.0 640.0 480.0 a red mug\n" * 2
    answers = json.loads(vl2("locate", "a red mug", "a cup", "-i", PHOTO, "--json").out)["answers"]
    assert [answer.pop("query") for answer in answers] == ["a red mug", "a cup"]
    assert answers[0] == answers[1] == json.loads(vl2("locate", "a red mug", "-i", PHOTO, "--json").out)
    answering("I see no mug.")
    assert vl2("locate", "a", "b", "-i", PHOTO).err == "".join(
        f"vl2: {query}: nothing located; the model said: I see no mug.\n" for query in "ab"
    )


def test_boxes_are_drawn(vl2, answering, tmp_path):
    answering(TWO_BOXES)
    path = tmp_path / "boxes.png"
    ran = vl2("locate", "a red mug", "-i", "-", "--draw", path, stdin=PHOTO.read_bytes())
    assert (ran.code, ran.err) == (0, f"vl2: drawn to {path}\n")
    with Image.open(path) as drawn, Image.open(PHOTO) as photo:
        assert drawn.size == photo.size
        assert drawn.convert("RGB").tobytes() != photo.convert("RGB").tobytes()


def test_nothing_located_is_said_on_stderr_in_one_line(vl2, answering):
    answering("I see\nno mug.")
    ran = vl2("locate", "a red mug", "-i", PHOTO)
    assert (ran.code, ran.out, ran.err) == (0, "", "vl2: nothing located; the model said: I see no mug.\n")
    quiet = vl2("locate", "a red mug", "-i", PHOTO, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp", ".gif", ".bmp", ".tiff"])
def test_drawing_knows_the_common_formats(vl2, answering, tmp_path, suffix):
    answering(TWO_BOXES)
    path = tmp_path / f"boxes{suffix}"
    assert vl2("locate", "a", "-i", PHOTO, "-q", "--draw", path).err == ""
    with Image.open(path) as drawn:
        assert drawn.size == (640, 480)


def test_json_is_escaped_where_stdout_has_no_unicode(monkeypatch):
    file = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(file, encoding="ascii"))
    print_json({"text": "总计"})
    assert json.loads(file.getvalue()) == {"text": "总计"}


def test_a_picture_that_cannot_be_saved_is_one_line(vl2, answering, tmp_path):
    answering(TWO_BOXES)
    file = io.BytesIO()
    Image.new("L", (20_000, 2)).save(file, "PNG")
    path: Path = tmp_path / "boxes.webp"  # holds at most 16,383 px a side
    ran = vl2("locate", "a", "-i", "-", "--draw", path, stdin=file.getvalue())
    assert ran.code == 1
    assert ran.err.startswith(f"vl2: cannot write {path}: ")
    assert ran.err.count("\n") == 1
