"""Files, folders, PDF pages and lines of requests to items."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.pdf_files import text_pdf
from tests.reference import IMAGES
from vl2.batch_job.file_items import file_items
from vl2.batch_job.item import check_unique
from vl2.batch_job.request_lines import request_items
from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.sampling import GenerateOptions

OPTIONS = GenerateOptions(max_new_tokens=9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("page10.png", "page2.png", "sub/a.JPG", "notes.txt"):
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(path, format="PNG")
    pages = [Image.new("RGB", (200, 100), color) for color in ("red", "blue")]
    pages[0].save(tmp_path / "scans" / "two.pdf", save_all=True, append_images=pages[1:], resolution=72)
    (tmp_path / "scans" / "zz.pdf").write_bytes(b"no pdf")
    return tmp_path / "scans"


def test_a_folder_becomes_its_pictures_and_pages_in_natural_order(folder: Path) -> None:
    items = file_items([str(folder)], "?", OPTIONS)
    assert [item.id for item in items] == ["page2.png", "page10.png", "sub/a.JPG", "two.pdf#1", "two.pdf#2", "zz.pdf"]
    assert items[4].about == {"file": "two.pdf", "page": 2}


def test_pages_are_drawn_as_finely_as_asked(folder: Path) -> None:
    for dpi, width in ((72, 200), (144, 400)):
        pages = file_items([str(folder / "two.pdf")], "?", OPTIONS, dpi=dpi)
        first, second = (item.read().images[0] for item in pages)
        assert isinstance(first, Image.Image)
        assert isinstance(second, Image.Image)
        assert first.size == (width, width // 2)
        assert first.getpixel((5, 5))[0] > 200 > 50 > first.getpixel((5, 5))[2]  # type: ignore[index]
        assert second.getpixel((5, 5))[2] > 200  # type: ignore[index]


def test_a_file_that_is_no_pdf_is_one_item_with_an_error(folder: Path) -> None:
    with pytest.raises(UserError, match="not a PDF, or damaged"):
        file_items([str(folder)], "?", OPTIONS)[-1].read()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [(["no/such"], "no file or folder"), ([str(IMAGES / ".." / "README.md")], "not a supported file")],
)
def test_what_cannot_be_read_is_refused(inputs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        file_items(inputs, "?", OPTIONS)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to read"):
        file_items([str(tmp_path)], "?", OPTIONS)


def requests(tmp_path: Path, *lines: object) -> list[Any]:
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return request_items(path, OPTIONS)


def test_short_requests_set_questions_images_and_options(tmp_path: Path) -> None:
    first, second, third = requests(
        tmp_path,
        {"id": "a", "question": "what?", "images": ["x.png", "https://e.com/y.png"], "temperature": 0.5, "system": "s"},
        {"locate": "a dog", "image": "/abs/z.png", "constrained": True},
        {"id": 3, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    )
    asked = first.read()
    assert asked.images == [str(tmp_path / "x.png"), "https://e.com/y.png"]
    assert (asked.options.temperature, asked.options.max_new_tokens) == (0.5, 9)
    assert asked.turns[0].role == "system"
    assert second.id == "line 2"
    assert second.read().images == ["/abs/z.png"]
    assert second.read().options.constraint == WellFormedBoxes()
    assert (third.id, third.read().options.max_new_tokens) == ("3", 4)


def test_openai_lines_are_read(tmp_path: Path) -> None:
    content = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "pictures/x.png"}}]
    schema = {"type": "object", "properties": {}}
    body = {
        "model": "x",
        "messages": [{"role": "user", "content": content}],
        "max_completion_tokens": 7,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    }
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (item,) = requests(tmp_path, line)
    asked = item.read()
    assert (item.id, item.form, asked.options.max_new_tokens) == ("r1", "openai", 7)
    assert asked.images == [str(tmp_path / "pictures" / "x.png")]
    assert asked.options.constraint == JsonSchema(schema)


BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is a list, not an object"),
        ("[" * 100_000, "line 1 is not JSON"),
        ({"id": "a"}, "needs one of question, messages or locate, got none"),
        ({"question": "a", "locate": "b"}, "got question, locate"),
        ({"question": 3}, "question must be a string"),
        ({"question": "a", "images": "x.png"}, "images a list"),
        ({"question": "a", "temprature": 1}, "unknown option temprature"),
        ({"question": "a", "temperature": "hot"}, "temperature must be a number, got .hot."),
        ({"question": "a", "stop": 5}, "wrong type"),
        ({"question": "a", "max_tokens": 4.5}, "max_new_tokens must be a whole number"),
        ({"question": "a", "temperature": -1}, "temperature must be at least 0"),
        ({"question": "a", "response_format": {"type": "xml"}}, "response_format must have the type"),
        ({"question": "a", "response_format": {"type": "json_schema"}}, "JSON schema must be an object"),
        ({"custom_id": "a"}, "needs custom_id, a string, and body"),
        ({"custom_id": 5, "body": BODY}, "needs custom_id, a string, and body"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": BODY}, "must be a POST to /v1/chat/completions"),
        ({"custom_id": "a", "body": {**BODY, "stream": True}}, "n must be 1 and stream false"),
        ({"custom_id": "a", "body": {**BODY, "n": 2}}, "n must be 1 and stream false"),
    ],
)
def test_a_wrong_line_is_an_item_with_an_error(tmp_path: Path, line: object, message: str) -> None:
    (item,) = requests(tmp_path, line)
    with pytest.raises(UserError, match=message):
        item.read()


def test_two_items_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="two items are called 'a'"):
        check_unique(requests(tmp_path, {"id": "a", "question": "x"}, {"id": "a", "question": "y"}))


def test_the_text_layer_of_a_page_is_a_guess_of_the_answer(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "bill.pdf").write_bytes(text_pdf("Total 1,234.50", x=72, y=700))
    (item,) = file_items([str(tmp_path / "bill.pdf")], "?", OPTIONS)
    assert item.read().options.prediction == "Total 1,234.50"
    (item,) = file_items([str(tmp_path / "bill.pdf")], "?", replace(OPTIONS, speculation=False))
    assert item.read().options.prediction == ""
    assert file_items([str(folder / "two.pdf")], "?", OPTIONS)[0].read().options.prediction == ""
