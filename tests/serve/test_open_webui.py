"""The recipe for Open WebUI in docs/how-to/clients.md, as it stands there, against a server of the built-in model."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.drawn_examples import ROOT
from vl2.infer.vlm import VLM

from .live_server import LiveServer
from .open_webui import OpenWebUI, open_webui
from .pictures import example, user
from .test_client_examples import examples, section

QUESTION = "What is the total amount?"
BILL = ROOT / "examples" / "bill.png"


def settings(server: LiveServer) -> dict[str, str]:
    """Return the variables that the page sets, with the address of the server in place of the page's."""
    exports = re.findall(r"^\$ export (.+)$", section("Open WebUI"), re.M)
    pairs = [pair.partition("=") for line in exports for pair in shlex.split(line)]
    found = {name: value for name, _, value in pairs}
    assert found["OPENAI_API_BASE_URL"] == "http://127.0.0.1:8000/v1"
    return {**found, "OPENAI_API_BASE_URL": f"{server.url}/v1"}


@pytest.fixture(scope="module")
def web(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWebUI]:
    program = os.environ.get("OPEN_WEBUI") or shutil.which("open-webui")
    if program is None:
        pytest.skip(
            "Open WebUI is not installed: `pip install open-webui` in an environment of its own, and set OPEN_WEBUI "
            "to the path of its program"
        )
    with open_webui(program, tmp_path_factory.mktemp("open_webui"), settings(server)) as started:
        yield started


def test_the_filter_of_the_page_puts_pictures_first_and_keeps_the_order_otherwise() -> None:
    made: dict[str, Any] = {}
    (code,) = examples("Open WebUI")
    exec(compile(code, "filter", "exec"), made)
    first, second = ({"type": "image_url", "image_url": {"url": url}} for url in ("first", "second"))
    words, more = ({"type": "text", "text": text} for text in ("words", "more"))
    plain = {"role": "assistant", "content": "An answer."}
    body = {"messages": [{"role": "user", "content": [words, first, more, second]}, plain]}
    expected = {"messages": [{"role": "user", "content": [first, second, words, more]}, plain]}
    assert made["Filter"]().inlet(body) == expected


@pytest.mark.slow
def test_open_webui_lists_the_model(web: OpenWebUI) -> None:
    assert [model["id"] for model in web.get("/api/models")["data"]] == ["nano"]


@pytest.mark.slow
@pytest.mark.parametrize(("picture", "question"), [("bill.png", QUESTION), ("word.png", "What does the image say?")])
def test_its_api_gives_the_answer_that_the_model_gives(web: OpenWebUI, nano: VLM, picture: str, question: str) -> None:
    body = {"model": "nano", "messages": [user(question, example(picture))], "stream": False}
    expected = nano.chat(question, images=[ROOT / "examples" / picture]).text
    assert web.post("/api/chat/completions", json=body)["choices"][0]["message"]["content"] == expected


@pytest.mark.slow
def test_a_stream_of_its_api_is_the_whole_answer_in_pieces(web: OpenWebUI, nano: VLM) -> None:
    pieces = web.stream({"model": "nano", "messages": [user(QUESTION, example("bill.png"))]})
    assert "".join(pieces) == nano.chat(QUESTION, images=[BILL]).text
    assert len(pieces) > 1


@pytest.mark.slow
def test_its_page_sends_one_request_with_the_picture_first_and_nothing_else(
    web: OpenWebUI, server: LiveServer, nano: VLM
) -> None:
    """Functions, a list of attached files, or a request for a title would add to the tokens of the prompts."""
    (code,) = examples("Open WebUI")
    web.add_filter("pictures_first", code)
    server.wait_until_idle()
    before = server.metric_values()["vl2_prompt_tokens"]
    answer = web.ask_in_a_new_chat("nano", QUESTION, BILL)
    server.wait_until_idle()
    expected = nano.chat(QUESTION, images=[BILL])
    assert answer == expected.text
    assert server.metric_values()["vl2_prompt_tokens"] - before == expected.usage.prompt_tokens
