"""Pictures on the page: chosen, pasted, dropped; their price before sending; an object marked in one of them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, answer_text, ask, choose, rect, send, wait_until
from vl2.infer.prompts import (
    describe_prompt,
    locate_like_prompt,
    locate_prompt,
    mark_object,
    read_prompt,
)
from vl2.process.conversation import user_turn
from vl2.process.tile_report import TileReport


def same_prompt(backend: ScriptedBackend, prompt: str, *images: Any) -> bool:
    """Tell whether the last ask is what the Python API would have asked."""
    expected = backend.processor.encode([user_turn(prompt, images)])
    found = backend.requests[-1].sample
    return found.input_ids.tolist() == expected.input_ids.tolist() and bool((found.tiles == expected.tiles).all())


def test_a_chosen_picture_is_sent_bit_for_bit_with_the_question(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "Two halves."
    add(page, picture)
    ask(page, "What is it?")
    assert answer_text(page) == "Two halves."
    assert same_prompt(backend, "What is it?", picture)
    assert page.locator(".attachment").count() == 0
    assert page.locator(".question .thumb img").count() == 1


def test_the_price_before_sending_is_what_is_then_paid(page: Any, backend: ScriptedBackend, picture, second_picture):
    add(page, picture, second_picture)
    reports = TileReport.plan([[(400, 300), (120, 480)]], backend.processor)
    costs = [report.to_dict()["visual_tokens"] for report in reports]
    assert page.locator(".cost").all_inner_texts() == [f"{cost} tokens" for cost in costs]
    assert page.locator("#plan").inner_text().startswith(f"{sum(costs)} tokens for ")
    ask(page, "Both?")
    assert int(backend.requests[-1].sample.image_mask.sum()) == sum(costs)
    assert f"{sum(costs)} of them for pictures" in page.locator(".usage").inner_text()


def test_the_tile_grid_is_drawn_where_the_model_cuts(page: Any, backend: ScriptedBackend, picture: Path):
    (report,) = TileReport.plan([[(400, 300)]], backend.processor)
    columns, rows = report.grid
    assert columns > 1
    assert rows > 1
    add(page, picture)
    page.click(".attachment-open")
    left, top, right, bottom = rect(page.locator(".stage-canvas"))
    unit = (right - left) / report.canvas[0]
    assert abs((bottom - top) - report.canvas[1] * unit) < 1
    found = [rect(line) for line in page.locator(".tile-line").all()]
    upright = sorted(((a + c) / 2, (b + d) / 2) for a, b, c, d in found if c - a < d - b)
    flat = sorted(((b + d) / 2, (a + c) / 2) for a, b, c, d in found if c - a > d - b)
    tile, centre = report.tile_px * unit, ((left + right) / 2, (top + bottom) / 2)
    assert np.allclose(upright, [(left + n * tile, centre[1]) for n in range(1, columns)], atol=1.01)
    assert np.allclose(flat, [(top + n * tile, centre[0]) for n in range(1, rows)], atol=1.01)
    shown = rect(page.locator(".stage-picture"))
    corners = np.array([*report.offset, *np.add(report.offset, report.resized)])
    assert np.allclose(shown, np.array([left, top, left, top]) + corners * unit, atol=1)
    assert f"{columns * rows} tiles in {columns} × {rows}" in page.locator("#viewer-figures").inner_text()


def test_a_picture_is_pasted_from_the_clipboard(page: Any, backend: ScriptedBackend, picture: Path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """async (data) => {
          const png = new Blob([Uint8Array.from(atob(data), c => c.charCodeAt(0))], {type: "image/png"});
          await navigator.clipboard.write([new ClipboardItem({"image/png": png})]);
        }""",
        base64.b64encode(picture.read_bytes()).decode(),
    )
    page.focus("#question")
    page.keyboard.press("Control+V")
    page.wait_for_selector(".attachment")
    ask(page, "What?")
    (image,) = backend.requests[-1].images
    assert image.size == (400, 300)
    assert image.getpixel((200, 10)) == (40, 80, 220)


def test_pasted_text_stays_text(page: Any):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('words, no picture')")
    page.focus("#question")
    page.keyboard.press("Control+V")
    assert page.input_value("#question") == "words, no picture"
    assert page.locator(".attachment").count() == 0


def test_pictures_are_dropped_anywhere_on_the_page(page: Any, backend: ScriptedBackend, picture: Path):
    transfer = page.evaluate_handle(
        """(data) => {
          const transfer = new DataTransfer();
          const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
          transfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
          return transfer;
        }""",
        base64.b64encode(picture.read_bytes()).decode(),
    )
    page.dispatch_event("#main", "dragenter", {"dataTransfer": transfer})
    assert page.locator("#drop").is_visible()
    page.dispatch_event("#main", "drop", {"dataTransfer": transfer})
    page.wait_for_selector(".attachment")
    assert not page.locator("#drop").is_visible()
    ask(page, "What?")
    assert same_prompt(backend, "What?", picture)


def test_a_picture_held_upright_by_its_camera_is_measured_upright(page: Any, backend: ScriptedBackend, tmp_path: Path):
    turned = Image.new("RGB", (300, 100), "white")
    exif = turned.getexif()
    exif[274] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    add(page, tmp_path / "turned.jpg")
    page.click(".attachment-open")
    assert page.locator("#viewer-figures").inner_text().startswith("100 × 300 px")
    page.keyboard.press("Escape")
    ask(page, "What?")
    assert backend.requests[-1].images[0].size == (100, 300)


def test_what_is_no_picture_is_told_and_not_taken(page: Any, tmp_path: Path):
    (tmp_path / "notes.png").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "notes.png"))
    page.wait_for_selector("#composer-error p")
    assert (
        page.locator("#composer-error")
        .inner_text()
        .startswith("notes.png is not a picture that this browser can show.")
    )
    assert page.locator(".attachment").count() == 0


def test_a_picture_can_be_taken_away_again(page: Any, picture: Path, second_picture: Path):
    add(page, picture, second_picture)
    page.click("[aria-label='Remove halves.png']")
    wait_until(page, "() => document.querySelectorAll('.attachment').length === 1")
    assert page.locator(".attachment-open").get_attribute("title") == "Open tall.png: tiles and tokens"


@pytest.mark.parametrize(
    ("task", "question", "prompt"),
    [
        ("ask", "Why?", "Why?"),
        ("locate", "the sky", locate_prompt("the sky")),
        ("describe", "", describe_prompt(grounded=True)),
        ("read", "", read_prompt()),
    ],
)
def test_each_task_asks_as_the_python_api_does(page: Any, backend: ScriptedBackend, picture, task, question, prompt):
    add(page, picture)
    choose(page, task)
    ask(page, question)
    assert same_prompt(backend, prompt, picture)


def test_a_task_without_what_it_needs_is_told(page: Any, picture: Path, second_picture: Path):
    def told() -> str:
        send(page)
        page.wait_for_selector("#composer-error p")
        text: str = page.locator("#composer-error").inner_text()
        return text

    assert told() == "Type a question first."
    choose(page, "describe")
    assert told() == "Add a picture first."
    choose(page, "like")
    assert not page.locator("#composer-error").is_visible()
    assert told().startswith("Add two pictures")
    add(page, picture, second_picture)
    assert told() == "Open the first picture and mark an object in it."
    assert page.locator(".turn").count() == 0


def test_an_object_that_is_marked_with_the_pointer_is_looked_for_in_the_other_picture(
    page: Any, backend: ScriptedBackend, picture: Path, second_picture: Path
):
    backend.text = "<|ref|>thing<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>"
    add(page, picture, second_picture)
    page.locator(".attachment-open").first.click()
    left, top, right, bottom = rect(page.locator(".stage-picture"))
    x, y = (right - left) / 400, (bottom - top) / 300
    page.mouse.move(left + 100 * x, top + 60 * y)
    page.mouse.down()
    page.mouse.move(left + 200 * x, top + 100 * y, steps=4)
    page.mouse.move(left + 240 * x, top + 200 * y, steps=4)
    page.mouse.up()
    corners = [int(field.input_value()) for field in page.locator("[data-corner]").all()]
    assert np.allclose(corners, (100, 60, 240, 200), atol=1.5)
    page.keyboard.press("Escape")
    choose(page, "like")
    ask(page)
    marked = mark_object(picture, corners)
    sent = np.asarray(backend.requests[-1].images[0])
    red = (np.asarray(marked) == (255, 0, 0)).all(axis=-1)
    found = (sent[..., 0] > 200) & (sent[..., 1] < 60) & (sent[..., 2] < 60)
    assert (red & found).sum() > 0.8 * red.sum()
    assert (found & ~red).sum() < 0.2 * red.sum()
    assert backend.requests[-1].images[1].size == (120, 480)
    assert locate_like_prompt() in backend.processor.tokenizer.decode(backend.requests[-1].sample.input_ids.tolist())
    assert page.locator(".frame img").get_attribute("alt") == "tall.png"


def test_an_object_can_be_marked_by_keyboard_alone(page: Any, picture: Path):
    add(page, picture)
    page.focus(".attachment-open")
    page.keyboard.press("Enter")
    page.focus("[data-corner='0']")
    for value in (10, 20, 110, 220):
        page.keyboard.type(str(value))
        page.keyboard.press("Tab")
    left, top, right, bottom = rect(page.locator(".stage-picture"))
    x, y = (right - left) / 400, (bottom - top) / 300
    found = rect(page.locator("#mark-box"))
    assert np.allclose(found, (left + 10 * x, top + 20 * y, left + 110 * x, top + 220 * y), atol=2)
    page.keyboard.press("Escape")
    assert page.locator(".flag").inner_text() == "marked"
