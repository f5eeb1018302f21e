"""Nothing that a client sends is answered by a 5xx, hurts the server, or reaches what it should not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from vl2.infer.vlm import VLM
from vl2.serve.settings import RequestLimits, ServerSettings

from .hostile import HOSTILE, Hostile, to_markdown
from .live_server import LiveServer, engine_backend, serving
from .pictures import EXAMPLES, user
from .strange_web import strange_web

DOCUMENT = Path(__file__).parents[2] / "docs" / "hostile-requests.md"


@pytest.fixture(scope="module")
def guarded(nano: VLM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with small limits and a folder of files, good and bad."""
    folder = tmp_path_factory.mktemp("allowed")
    shutil.copy(EXAMPLES / "line.png", folder / "line.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "link-out.png").symlink_to(EXAMPLES / "line.png")
    os.mkfifo(folder / "pipe")
    limits = RequestLimits(
        max_body_bytes=8 << 20,
        max_images=4,
        max_image_bytes=2 << 20,
        max_request_pixels=3_000_000,
        fetch_timeout_s=2.0,
    )
    settings = ServerSettings(name="nano", allowed_folders=(folder,), limits=limits, max_decoding_bytes=128 << 20)
    with serving(engine_backend(nano), settings) as live, pytest.MonkeyPatch.context() as patch, strange_web(patch):
        yield live


def ask(server: LiveServer, case: Hostile) -> httpx.Response:
    headers = dict(case.headers)
    if case.content_type is not None:
        headers["Content-Type"] = case.content_type
    # As a raw request: a client library would tidy up paths and headers.
    return httpx.Client(base_url=server.url, timeout=30).request(
        case.method, httpx.URL(server.url).copy_with(raw_path=case.path.encode()), content=case.body(), headers=headers
    )


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: f"{case.group}-{case.name[:50]}".replace("\0", "0"))
def test_a_hostile_request_gets_a_clear_refusal(guarded: LiveServer, case: Hostile) -> None:
    answer = ask(guarded, case)
    assert answer.status_code == case.status, answer.text
    if case.status == 200:
        return  # harmless, whatever it was meant to be
    error = answer.json()["error"]
    assert case.says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(error["message"]) <= 500
    assert answer.headers["x-request-id"]


def test_after_all_that_the_server_answers_as_before(guarded: LiveServer, nano: VLM) -> None:
    reply = nano.chat("Hello", images=[EXAMPLES / "line.png"], max_new_tokens=4)
    made = guarded.post(
        "/v1/chat/completions", {"model": "nano", "messages": [user("Hello", "line.png")], "max_tokens": 4}
    )
    assert made.json()["choices"][0]["message"]["content"] == reply.text
    guarded.wait_until_idle()
    assert guarded.metric_values()["vl2_cache_tokens_reserved"] == 0


def test_there_are_many_of_them_and_the_document_lists_them_all() -> None:
    assert len(HOSTILE) >= 60
    assert to_markdown() in DOCUMENT.read_text(encoding="utf-8")
