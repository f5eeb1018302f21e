"""The examples that the page begins with: the built-in model answers each as it is drawn, in both languages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vl2
from tests.serve.live_server import LiveServer, engine_backend, serving
from tests.web.talk import DONE, answer_text, rect, wait_until
from vl2.eval.score.boxes import iou
from vl2.infer.prompts import locate_prompt
from vl2.serve.settings import ServerSettings

IOU = 0.6
LANGUAGES = {"en": "en-GB", "zh": "zh-CN"}
# What is drawn, as the page's own code says it beside what it draws.
TOLD = """() => import("/web/examples.js").then((module) => module.EXAMPLES.map(
  ({ task, question, truth, size }) => ({ task, question, truth, size })))"""
DRAWN = """([index, font]) => import("/web/examples.js").then(
  (module) => module.canvasOf(module.EXAMPLES[index], { font }).toDataURL())"""


@pytest.fixture(scope="module")
def vlm() -> Any:
    return vl2.load("nano")


@pytest.fixture(scope="module")
def server(vlm: Any) -> Iterator[LiveServer]:
    with serving(engine_backend(vlm), ServerSettings(name="nano")) as running:
        yield running


def drawn(page: Any, index: int, font: str) -> Image.Image:
    url = page.evaluate(DRAWN, [index, font])
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")


@pytest.mark.parametrize("font", ["sans-serif", "serif"])
def test_the_model_is_right_whatever_the_font(open_page: Callable[..., Any], server: LiveServer, vlm: Any, font: str):
    page = open_page(server.url)
    for index, example in enumerate(page.evaluate(TOLD)):
        image = drawn(page, index, font)
        assert image.size == tuple(example["size"])
        for language, question in example["question"].items():
            truth = example["truth"]
            prompt = locate_prompt(question) if example["task"] == "locate" else question
            reply = vlm.chat(prompt, [image], max_new_tokens=64)
            if "box" in truth:
                assert len(reply.boxes) == 1, (language, reply.text)
                assert iou(reply.boxes[0].xyxy_px, truth["box"]) > IOU, (language, reply.text)
            else:
                assert reply.text.strip() == truth["text"], language


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_example_that_is_pressed_and_sent_is_answered_rightly(
    open_page: Callable[..., Any], server: LiveServer, language: str
):
    page = open_page(server.url, locale=LANGUAGES[language])
    for index, example in enumerate(page.evaluate(TOLD)):
        page.click(f".example >> nth={index}")
        wait_until(page, "() => document.querySelector('.cost')?.textContent")
        assert page.input_value("#question") == example["question"][language]
        page.click("#send")
        page.wait_for_selector(DONE)
        if "box" in example["truth"]:
            left, top, right, _ = rect(page.locator(".frame img"))
            scale = (right - left) / example["size"][0]
            box = [
                (value - start) / scale
                for value, start in zip(rect(page.locator(".box")), (left, top) * 2, strict=True)
            ]
            assert iou(box, example["truth"]["box"]) > IOU
            told = page.locator(".notes .note").all_inner_texts()
            assert [text for text in told if ("回答“有”" if language == "zh" else "answers yes") in text]
        else:
            assert answer_text(page) == example["truth"]["text"]
        page.click("#new-chat")


def test_the_box_that_is_called_right_is_around_what_is_drawn(open_page: Callable[..., Any], server: LiveServer):
    page = open_page(server.url)
    (index,) = [n for n, example in enumerate(page.evaluate(TOLD)) if "box" in example["truth"]]
    pixels = np.asarray(drawn(page, index, "serif")).astype(int)
    is_green = (pixels[..., 1] > pixels[..., 0] + 40) & (pixels[..., 1] > pixels[..., 2] + 40)
    ys, xs = np.nonzero(is_green)
    found = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    assert iou(found, page.evaluate(TOLD)[index]["truth"]["box"]) > 0.95


def test_a_thing_that_is_not_there_is_called_not_there(open_page: Callable[..., Any], server: LiveServer):
    page = open_page(server.url)
    for locale, words, sentence in (
        ("en-GB", "the blue star", "Asked “Is there a blue star in the image?”, the model answers no."),
        ("zh-CN", "蓝色的星星", "问模型“图中有蓝色的星星吗？”，它回答“没有”。"),
    ):
        page = open_page(server.url, locale=locale)
        page.click(".example >> nth=0")  # four shapes, among them an orange star
        wait_until(page, "() => document.querySelector('.cost')?.textContent")
        page.fill("#question", words)
        page.click("#send")
        page.wait_for_selector(DONE)
        assert page.locator(".box").count() >= 1
        assert sentence in page.locator(".notes").inner_text()
        assert page.locator(".is-doubtful").count() == 1
