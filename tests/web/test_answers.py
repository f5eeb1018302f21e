"""Answers on the page: they stream, stop, fail in a sentence, and their boxes lie where they belong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serve.live_server import engine_backend, serving, wait_for
from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import DONE, add, answer_text, ask, choose, rect, send, wait_until
from vl2.errors import UserError
from vl2.process.conversation import Turn, user_turn
from vl2.serve.settings import ServerSettings

BOXES = {"sky": [(100, 200, 500, 480)], "grass": [(0, 500, 999, 999), (700, 600, 800, 640)]}
GROUNDED = (
    "The <|ref|>sky<|/ref|><|det|>[[100, 200, 500, 480]]<|/det|> is above the "
    "<|ref|>grass<|/ref|><|det|>[[0, 500, 999, 999], [700, 600, 800, 640]]<|/det|>."
)


def test_an_answer_comes_piece_by_piece(page: Any, backend: ScriptedBackend):
    backend.text = "One two three four five six seven eight nine ten."
    backend.pause_after = 6
    send(page, "Count.")
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.includes('One')")
    part = answer_text(page)
    assert backend.text.startswith(part)
    assert len(part) < len(backend.text)
    assert page.locator(".answer").get_attribute("aria-busy") == "true"
    assert page.locator("#stop").is_visible()
    assert not page.locator("#send").is_visible()
    backend.go_on()
    page.wait_for_selector(DONE)
    assert answer_text(page) == backend.text
    assert page.locator("#send").is_visible()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stopping_ends_the_work_and_keeps_what_came(page: Any, backend: ScriptedBackend, how: str):
    backend.text = "One two three four five six seven eight nine ten."
    backend.pause_after = 6
    send(page, "Count.")
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.includes('One')")
    if how == "button":
        page.click("#stop")
    else:
        page.keyboard.press("Escape")
    page.wait_for_selector(DONE)
    assert page.locator(".note").inner_text() == "Stopped."
    assert answer_text(page).startswith("One")
    wait_for(lambda: backend.num_closed == 1)
    backend.reset()
    backend.text = "Yes."
    ask(page, "And now?")
    assert answer_text(page) == "Yes."
    told = backend.processor.tokenizer.decode(backend.requests[-1].sample.input_ids.tolist(), skip_special=False)
    assert "Count." in told
    assert "One" in told


def test_boxes_lie_at_the_right_pixels_of_the_picture(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = GROUNDED
    add(page, picture)
    choose(page, "describe")
    ask(page)
    assert answer_text(page) == "The sky is above the grass."
    left, top, right, bottom = rect(page.locator(".frame img"))
    assert abs((right - left) / (bottom - top) - 400 / 300) < 0.01
    expected = [box for boxes in BOXES.values() for box in boxes]
    found = [rect(box) for box in page.locator(".box").all()]
    assert len(found) == len(expected)
    for (x0, y0, x1, y1), place in zip(expected, found, strict=True):
        width, height = right - left, bottom - top
        at = (left + x0 / 999 * width, top + y0 / 999 * height, left + x1 / 999 * width, top + y1 / 999 * height)
        assert np.allclose(place, at, atol=1)
    assert page.locator(".box-label").all_inner_texts() == ["sky", "grass", "grass"]


def test_words_and_boxes_light_each_other_up(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = GROUNDED
    add(page, picture)
    ask(page, "Describe.")
    lit = "[...document.querySelectorAll('.is-lit')].map(e => e.className.split(' ')[0] + e.dataset.mention).sort()"
    page.hover(".mention >> nth=1")
    assert page.evaluate(lit) == ["box1", "box1", "mention1"]
    page.hover(".box >> nth=0")
    assert page.evaluate(lit) == ["box0", "mention0"]
    page.mouse.move(5, 5)
    assert page.evaluate(lit) == []
    page.focus(".mention >> nth=1")
    assert page.evaluate(lit) == ["box1", "box1", "mention1"]


def test_boxes_come_while_the_answer_does_and_half_a_tag_is_never_shown(page: Any, backend: ScriptedBackend, picture):
    backend.text = GROUNDED
    add(page, picture)
    tokens = len(backend.processor.tokenizer.encode(GROUNDED))
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => {
          const text = document.querySelector(".answer-text");
          if (text) window.seen.push(text.innerText);
        }).observe(document.body, {subtree: true, childList: true, characterData: true}) }"""
    )
    backend.pause_after = tokens // 2
    send(page, "Describe.")
    page.wait_for_selector(".box")
    assert page.locator(DONE).count() == 0
    backend.go_on()
    page.wait_for_selector(DONE)
    assert not [text for text in page.evaluate("window.seen") if "<" in text or "[[" in text]


def test_the_png_has_the_boxes_in_the_pixels_of_the_picture(page: Any, backend: ScriptedBackend, picture, tmp_path):
    backend.text = GROUNDED
    add(page, picture)
    ask(page, "Describe.")
    with page.expect_download() as download:
        page.click("text=PNG with boxes")
    download.value.save_as(tmp_path / "boxes.png")
    assert download.value.suggested_filename == "halves-boxes.png"
    image = Image.open(tmp_path / "boxes.png").convert("RGB")
    assert image.size == (400, 300)
    assert image.getpixel((41, 100)) == (0xD5, 0x5E, 0x00)  # the left edge of the first box, at 100/999 of 400
    assert image.getpixel((120, 100)) == (40, 80, 220)
    assert image.getpixel((1, 200)) == (0x00, 0x72, 0xB2)


def test_the_json_says_what_the_api_said(page: Any, backend: ScriptedBackend, picture: Path, tmp_path: Path):
    backend.text = GROUNDED
    add(page, picture)
    ask(page, "Describe.")
    with page.expect_download() as download:
        page.locator(".answer-tools").get_by_text("JSON", exact=True).click()
    download.value.save_as(tmp_path / "answer.json")
    told = json.loads((tmp_path / "answer.json").read_text())
    assert (told["text"], told["question"], told["image"]["width"]) == (GROUNDED, "Describe.", 400)
    assert [(b["label"], tuple(b["xyxy_999"])) for b in told["boxes"]] == [
        (label, box) for label, boxes in BOXES.items() for box in boxes
    ]


def test_the_text_is_copied_without_tags(page: Any, backend: ScriptedBackend, picture: Path):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    backend.text = GROUNDED
    add(page, picture)
    ask(page, "Describe.")
    page.click("text=Copy text")
    page.wait_for_selector("#toast.shown")
    assert page.evaluate("navigator.clipboard.readText()") == "The sky is above the grass."


def test_malformed_boxes_are_left_out_and_the_rest_is_shown(page: Any, backend: ScriptedBackend, picture: Path):
    add(page, picture)
    for broken in (
        "<|det|>",
        "<|ref|>x",
        "<|ref|>x<|/ref|><|det|>[[1, 2",
        "<|det|>[[1, 2, 3, 4000]]<|/det|>",
        "a <|/ref|> b <",
    ):
        backend.text = f"Before {broken}"
        ask(page, "What?")
        assert answer_text(page).startswith("Before")
        assert "|" not in answer_text(page)
        assert page.locator(".box").count() == 0


def test_markdown_is_shown_as_such(page: Any, backend: ScriptedBackend):
    backend.text = (
        "# Title\n\nSome **bold** and *slanted* `code`.\n\n- one\n- two\n  - deep\n\n1. first\n2. second\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n```\nx < y\n```\n\n> said\n\n[site](https://example.org/)"
    )
    ask(page, "Show.")
    counts = {tag: page.locator(f".answer-text {tag}").count() for tag in
              ("h3", "strong", "em", "ul", "ol", "li", "table", "td", "pre", "blockquote", "a")}  # fmt: skip
    assert counts == {"h3": 1, "strong": 1, "em": 1, "ul": 2, "ol": 1, "li": 5, "table": 1, "td": 2, "pre": 1,
                      "blockquote": 1, "a": 1}  # fmt: skip
    assert page.locator(".answer-text pre").inner_text() == "x < y"


ATTACKS = (
    "<img src=x onerror='window.hurt=1'>",
    "<script>window.hurt=1</script>",
    "[click](javascript:window.hurt=1)",
    "[click](data:text/html,<script>window.hurt=1</script>)",
    "**<svg onload=window.hurt=1>**",
    "| <iframe src=//example.org> |\n|---|\n| <b>x</b> |",
    "<|ref|><img src=x onerror='window.hurt=1'><|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>",
    "\ue0005\ue001 \ue000",
    "```\n<img src=x onerror=window.hurt=1>",
)


def test_an_answer_cannot_inject_anything(page: Any, backend: ScriptedBackend, picture: Path):
    add(page, picture)
    for attack in ATTACKS:
        backend.text = f"Look: {attack}"
        ask(page, attack)
    page.wait_for_timeout(100)
    assert page.locator(".answer").count() == len(ATTACKS)
    assert page.evaluate("window.hurt") is None
    inside = "img, script, iframe, svg, b, a[href^='javascript'], a[href^='data']"
    assert page.locator(f":is(.answer-text, .question-text) :is({inside})").count() == 0
    assert page.locator(".box").count() == 1


def test_later_questions_carry_what_was_said(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = "A field."
    add(page, picture)
    ask(page, "What is it?")
    backend.text = "Green."
    ask(page, "Its colour?")
    sample = backend.processor.encode(
        [
            user_turn("What is it?", [str(picture)]),
            Turn(role="assistant", pieces=("A field.",)),
            user_turn("Its colour?"),
        ]
    )  # fmt: skip
    assert backend.requests[-1].sample.input_ids.tolist() == sample.input_ids.tolist()


def test_a_refusal_is_shown_as_a_sentence_and_can_be_tried_again(open_page: Callable[..., Any], scripted_server):
    backend, server = scripted_server
    backend.reset()
    page = open_page(server.url, expects_errors=True)
    backend.error = UserError("the prompt has 9000 tokens, the context is 4096: use fewer images")
    ask(page, "Too long?")
    alert = page.locator(".error[role=alert]")
    assert alert.locator("p").inner_text() == "the prompt has 9000 tokens, the context is 4096: use fewer images"
    backend.reset()
    backend.text = "Now it works."
    page.click("text=Try again")
    wait_until(page, "() => document.querySelector('.answer-text')?.innerText.includes('Now it works.')")
    assert page.locator(".turn").count() == 2


def in_window(page: Any, locator: Any) -> bool:
    """Tell whether all of an element can be seen between the head of the page and the composer."""
    _, top, _, bottom = rect(locator)
    head, foot = rect(page.locator("header"))[3], rect(page.locator("#composer"))[1]
    return bool(head <= top and bottom <= foot)


@pytest.mark.parametrize("viewport", [{"width": 1280, "height": 860}, {"width": 360, "height": 640}])
def test_an_error_is_seen_however_long_the_question_is(open_page: Callable[..., Any], scripted_server, viewport):
    backend, server = scripted_server
    backend.reset()
    page = open_page(server.url, expects_errors=True, viewport=viewport)
    backend.error = UserError("the prompt has 30000 tokens, the context is 4096: ask less")
    ask(page, "word after word " * 2000 + "\n" * 700 + "?")
    error = page.locator(".error[role=alert]")
    assert in_window(page, error)
    assert error.evaluate("element => element.closest('[aria-live]') !== null")
    fold = page.get_by_role("button", name="Show all")
    fold.click()
    assert rect(page.locator(".question-text"))[3] - rect(page.locator(".question-text"))[1] > 5000
    page.get_by_role("button", name="Show less").click()
    assert rect(page.locator(".question-text"))[3] - rect(page.locator(".question-text"))[1] < 400


def test_an_error_after_a_long_answer_is_seen(open_page: Callable[..., Any], scripted_server):
    server = scripted_server[1]
    page = open_page(server.url, expects_errors=True)
    piece = json.dumps({"choices": [{"index": 0, "delta": {"content": "line\n\n" * 400}, "finish_reason": None}]})
    fault = json.dumps({"error": {"message": "the engine has stopped"}})
    body = f"data: {piece}\n\ndata: {fault}\n\n"
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "Go on.")
    assert in_window(page, page.locator(".error"))
    assert page.locator(".error p").inner_text() == "the engine has stopped"


def test_a_long_question_leaves_its_answer_in_sight(page: Any, backend: ScriptedBackend):
    backend.text = "It is short."
    ask(page, "word after word " * 3000)
    assert in_window(page, page.locator(".answer-text"))


def test_a_server_that_is_gone_is_told(open_page: Callable[..., Any], nano_processor: Any):
    with serving(ScriptedBackend(nano_processor), ServerSettings(name="nano")) as server:
        page = open_page(server.url, expects_errors=True)
    ask(page, "Anybody?")
    assert page.locator(".error p").inner_text() == "The server cannot be reached. Is it still running?"


def test_a_key_is_asked_for_and_then_sent(open_page: Callable[..., Any], nano_processor: Any):
    backend = ScriptedBackend(nano_processor)
    backend.text = "Welcome."
    with serving(backend, ServerSettings(name="nano", api_key="open sesame")) as server:
        page = open_page(server.url, expects_errors=True, waits=False)  # without the key the model has no name
        page.wait_for_selector("#composer-error p")
        assert "enter it in the settings" in page.locator("#composer-error").inner_text()
        page.locator("#composer-error").get_by_role("button", name="Settings").click()
        page.fill("#api-key", "open sesame")
        page.click("#settings >> text=Save")
        wait_until(page, "() => document.getElementById('model-name').textContent === 'nano'")
        assert not page.locator("#composer-error").is_visible()
        ask(page, "Hello?")
        assert answer_text(page) == "Welcome."
        assert "open sesame" not in page.evaluate("JSON.stringify(localStorage)")


def test_what_is_set_is_what_is_asked(page: Any, backend: ScriptedBackend):
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#max-tokens", "77")
    page.fill("#temperature", "0.5")
    page.check("#well-formed")
    page.click("#settings >> text=Save")
    ask(page, "Hello?")
    options = backend.requests[-1].options
    assert (options.max_new_tokens, options.temperature) == (77, 0.5)
    assert options.constraint is not None
    told = backend.processor.tokenizer.decode(backend.requests[-1].sample.input_ids.tolist())
    assert "Be brief." in told


@pytest.mark.parametrize("how", ["escape", "cancel"])
def test_escape_and_cancel_leave_the_settings_as_they_were(page: Any, backend: ScriptedBackend, how: str):
    def change(tokens: str, *, done: str) -> None:
        page.click("#open-settings")
        page.fill("#system", f"Be {tokens}.")
        page.fill("#max-tokens", tokens)
        page.fill("#api-key", "secret")
        page.locator("#check-presence").set_checked(tokens == "77")
        if done == "escape":
            page.keyboard.press("Escape")
        else:
            page.get_by_role("button", name=done, exact=True).click()
        wait_until(page, "() => !document.getElementById('settings').open")
        page.wait_for_timeout(200)  # what a dialog's end sets off comes after it

    stored = "JSON.stringify([{...localStorage}, {...sessionStorage}])"
    change("77", done="Save")
    before = page.evaluate(stored)
    change("88", done="escape" if how == "escape" else "Cancel")
    assert page.evaluate(stored) == before
    page.click("#open-settings")
    assert page.input_value("#max-tokens") == "77"
    assert page.input_value("#system") == "Be 77."
    assert page.is_checked("#check-presence")
    page.keyboard.press("Escape")
    ask(page, "Hello?")
    assert backend.requests[-1].options.max_new_tokens == 77


def test_enter_in_a_field_of_the_settings_saves(page: Any, backend: ScriptedBackend):
    page.click("#open-settings")
    page.fill("#max-tokens", "55")
    page.press("#max-tokens", "Enter")
    ask(page, "Hello?")
    assert backend.requests[-1].options.max_new_tokens == 55


def says(page: Any, first: str, *later: str) -> list[list[Any]]:
    """Let the API say these one after another; return the messages of each request, as they come."""
    requests: list[list[Any]] = []
    texts = [first, *later]

    def answer(route: Any) -> None:
        requests.append(route.request.post_data_json["messages"])
        text = texts[min(len(requests), len(texts)) - 1]
        piece = json.dumps({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        route.fulfill(body=f"data: {piece}\n\ndata: [DONE]\n\n", content_type="text/event-stream")

    page.unroute_all()
    page.route("**/v1/chat/completions", answer)
    return requests


def notes(page: Any) -> list[str]:
    told: list[str] = page.locator(".notes").last.locator(".note").all_inner_texts()
    return told


MUG = "<|ref|>{}<|/ref|><|det|>[[10, 10, 90, 90]]<|/det|>"


@pytest.mark.parametrize(
    ("query", "question", "answer", "verdict"),
    [
        ("the red mug", "Is there a red mug in the image?", "No.", "no"),
        ("orange", "Is there an orange in the image?", "Yes.", "yes"),
        ("A dog.", "Is there a dog in the image?", "no, there is none", "no"),
        ("all the red mugs", "Are there any red mugs in the image?", "Yes", "yes"),
        ("man with glasses", "Is there a man with glasses in the image?", "No", "no"),
        ("mug", "Is there a mug in the image?", "Not sure", None),
        ("红色的杯子", "图中有红色的杯子吗？", "没有。", "no"),
        ("杯子", "图中有杯子吗？", "有。", "yes"),
    ],
)
def test_after_locate_the_page_tells_whether_the_model_says_that_the_thing_is_there(
    page: Any, picture: Path, query: str, question: str, answer: str, verdict: str | None
):
    requests = says(page, MUG.format(query), answer)
    add(page, picture)
    choose(page, "locate")
    ask(page, query)
    assert len(requests) == 2
    (message,) = requests[1]
    assert message["content"][0] == requests[0][0]["content"][0]  # the same picture
    assert message["content"][1]["text"] == question
    sentences = {
        "no": f"Asked “{question}”, the model answers no. The box may be around something else.",
        "yes": f"Asked “{question}”, the model answers yes.",
        None: f"Asked “{question}”, the model answers neither yes nor no.",
    }
    assert notes(page) == [sentences[verdict]]
    assert page.locator(".is-doubtful").count() == (verdict == "no")
    assert page.locator("figcaption").inner_text().startswith("Boxes are the model’s guesses.")
    ask(page, "And what colour?")  # what was asked beside is no part of the conversation
    assert question not in json.dumps(requests[2], ensure_ascii=False)


def test_a_box_of_another_name_and_an_answer_without_boxes_are_told(page: Any, picture: Path):
    requests = says(page, MUG.format("pink boat"), "No.", "There is none.", "A plain answer.")
    add(page, picture)
    choose(page, "locate")
    ask(page, "person")
    assert notes(page)[0] == "You asked for “person”; the model named its box “pink boat”."
    choose(page, "locate")
    ask(page, "person")
    assert notes(page) == ["The answer has no boxes."]
    assert len(requests) == 3  # where there is no box, there is nothing to doubt
    choose(page, "ask")
    ask(page, "What is it?")
    assert notes(page) == []


def test_an_answer_stands_where_the_question_whether_it_is_there_fails(
    open_page: Callable[..., Any], scripted_server, backend: ScriptedBackend, picture: Path
):
    page = open_page(scripted_server[1].url, expects_errors=True)
    backend.text = MUG.format("mug")
    numbers = iter(range(9))
    page.route("**/v1/chat/completions", lambda route: route.abort() if next(numbers) else route.continue_())
    add(page, picture)
    choose(page, "locate")
    ask(page, "mug")
    assert page.locator(".box").count() == 1
    assert page.locator(".error").count() == 0
    assert notes(page) == []


def test_the_question_whether_it_is_there_can_be_turned_off(page: Any, picture: Path):
    requests = says(page, MUG.format("mug"))
    page.click("#open-settings")
    page.uncheck("#check-presence")
    page.click("#settings >> text=Save")
    add(page, picture)
    choose(page, "locate")
    ask(page, "mug")
    assert page.locator(".box").count() == 1
    assert len(requests) == 1


def test_an_empty_answer_is_told(page: Any, backend: ScriptedBackend):
    backend.text = ""
    ask(page, "Hello?")
    assert notes(page) == ["The answer is empty."]


def test_the_page_shows_what_the_python_api_answers(open_page: Callable[..., Any], picture: Path):
    import vl2

    vlm = vl2.load("nano")
    with serving(engine_backend(vlm), ServerSettings(name="nano")) as server:
        page = open_page(server.url)
        add(page, picture)
        choose(page, "locate")
        ask(page, "green field")
        boxes = vlm.locate("green field", str(picture), max_new_tokens=1024, max_repeats=8)
        assert page.locator(".box").count() == len(boxes)
        left, top, right, bottom = rect(page.locator(".frame img")) if boxes else (0, 0, 1, 1)
        for box, found in zip(boxes, page.locator(".box").all(), strict=True):
            x, y = (right - left) / 400, (bottom - top) / 300
            x0, y0, x1, y1 = box.xyxy_px
            at = (left + x0 * x, top + y0 * y, left + max(x0, x1) * x, top + max(y0, y1) * y)
            assert np.allclose(rect(found), at, atol=2)
