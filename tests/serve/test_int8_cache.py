"""A server whose cache is in int8 answers as the Python interface does, with an adapter too."""

from __future__ import annotations

import vl2
from vl2.infer.vlm import VLM
from vl2.serve.settings import ServerSettings

from .live_server import engine_backend, serving

CHAT = "/v1/chat/completions"


def test_answers_are_those_of_python_one_by_one(nano: VLM) -> None:
    vlm = vl2.load("nano", cache="int8")
    assert (vlm.cache, nano.cache) == ("int8", "auto")
    questions = ["What is this?", "Add 3 and 4.", "Who are you?"]
    with serving(engine_backend(vlm), ServerSettings(name="nano")) as live:
        for question in questions:
            body = {"model": "nano", "messages": [{"role": "user", "content": question}], "max_tokens": 16}
            made = live.post(CHAT, body).json()
            alone = vlm.chat(question, max_new_tokens=16)
            assert made["choices"][0]["message"]["content"] == alone.text
            assert made["usage"]["completion_tokens"] == alone.usage.completion_tokens


def test_a_new_runner_keeps_the_form() -> None:
    vlm = vl2.load("nano", cache="int8")
    before = vlm.runner
    vlm.refresh()
    assert vlm.runner is not before
    assert vlm.cache == "int8"
