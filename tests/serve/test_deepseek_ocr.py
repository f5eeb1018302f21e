"""DeepSeek-OCR behind the server: its views come through the decoding processes, and its answers are the library's."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from tests.ocr.golden import toy_folder
from vl2.infer.vlm import load
from vl2.serve.settings import ServerSettings

from .live_server import engine_backend, serving

PAGE = Image.effect_noise((641, 1280), 60).convert("RGB")  # two crops and an overview in mode "gundam"


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("mode", ["tiny", "gundam"])
def test_a_page_is_answered_as_in_the_library(mode: str) -> None:
    vlm = load(toy_folder(), device="cpu", tiling=mode)
    expected = vlm.chat("Free OCR.", [PAGE], max_new_tokens=5, no_repeat_ngram_size=0)
    content = [{"type": "image_url", "image_url": {"url": data_url(PAGE)}}, {"type": "text", "text": "Free OCR."}]
    asked = {
        "model": "ocr",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 5,
        "no_repeat_ngram_size": 0,
        "no_repeat_ngram_window": 50,
        "no_repeat_ngram_allowed": [4094],
    }
    with serving(engine_backend(vlm), ServerSettings(name="ocr")) as live:
        answer = live.post("/v1/chat/completions", asked).json()
        wrong = live.post("/v1/chat/completions", {**asked, "no_repeat_ngram_window": -1})
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "no_repeat_ngram_window")
