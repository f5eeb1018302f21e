"""DeepSeek-OCR behind the server: its views come through the decoding processes, and its answers are the library's."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from tests.ocr.golden import toy_folder
from tests.web.scripted_backend import ScriptedBackend
from vl2.infer.vlm import load
from vl2.process.processor import Processor
from vl2.serve.schema.answers import ChatCompletion
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, engine_backend, events_of, serving

PAGE = Image.effect_noise((641, 1280), 60).convert("RGB")  # two crops and an overview in mode "gundam"


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


READ = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# Report\n\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>"
)
FIELDS = {
    "markdown": "# Report",
    "blocks": [
        {"type": "title", "text": "# Report", "boxes_px": [[0.0, 0.0, 999.0, 500.0]], "boxes_999": [[0, 0, 999, 500]],
         "page": 0},
        {"type": "image", "text": "", "boxes_px": [[0.0, 500.0, 999.0, 999.0]], "boxes_999": [[0, 500, 999, 999]],
         "page": 0},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> Iterator[LiveServer]:
    """A server whose model has read a page of 999 x 999 px."""
    backend = ScriptedBackend(Processor.from_folder(toy_folder()))
    backend.text = READ
    with serving(backend, ServerSettings(name="ocr")) as live:
        yield live


def question(**fields: object) -> dict[str, object]:
    picture = {"type": "image_url", "image_url": {"url": data_url(Image.new("RGB", (999, 999)))}}
    content = [picture, {"type": "text", "text": "Read."}]
    return {"model": "ocr", "messages": [{"role": "user", "content": content}], **fields}


def test_an_answer_has_blocks_and_markdown_as_the_description_of_the_api_says(reader: LiveServer) -> None:
    answer = reader.post("/v1/chat/completions", question()).json()
    (choice,) = ChatCompletion.model_validate(answer, strict=True).choices
    message = answer["choices"][0]["message"]
    assert message["content"] == READ
    assert {name: message[name] for name in FIELDS} == FIELDS
    assert [(box.label, box.xyxy_999) for box in choice.message.boxes] == [
        ("title", [0, 0, 999, 500]),
        ("image", [0, 500, 999, 999]),
    ]
    described = httpx.get(f"{reader.url}/openapi.json").json()["components"]["schemas"]
    assert set(described["AnswerMessage"]["properties"]) == {*message, "tool_calls"}
    assert set(described["AnswerBlock"]["properties"]) == set(message["blocks"][0])
    assert set(described["ChatCompletion"]["properties"]) == set(answer)


def test_the_last_chunk_of_a_stream_has_blocks_and_markdown(reader: LiveServer) -> None:
    chunks = events_of(reader.post("/v1/chat/completions", question(stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == READ
    assert {name: deltas[-1][name] for name in FIELDS} == FIELDS
    assert not any("blocks" in delta for delta in deltas[:-1])


def test_responses_and_completions_have_them_too_and_a_history_may(reader: LiveServer) -> None:
    url = data_url(Image.new("RGB", (999, 999)))
    parts = [{"type": "input_image", "image_url": url}, {"type": "input_text", "text": "Read."}]
    asked = {"model": "ocr", "input": [{"role": "user", "content": parts}]}
    (part,) = reader.post("/v1/responses", asked).json()["output"][0]["content"]
    assert {name: part[name] for name in FIELDS} == FIELDS
    prompt = {"model": "ocr", "prompt": "<image>\nFree OCR.", "images": [url]}
    (choice,) = reader.post("/v1/completions", prompt).json()["choices"]
    assert {name: choice[name] for name in FIELDS} == FIELDS
    last = events_of(reader.post("/v1/completions", {**prompt, "stream": True}).text)[-2]["choices"][0]
    assert {name: last[name] for name in FIELDS} == FIELDS
    first = question()
    said = reader.post("/v1/chat/completions", first).json()["choices"][0]["message"]
    again = {**first, "messages": [*first["messages"], said, {"role": "user", "content": "And now?"}]}  # type: ignore[misc]
    answer = reader.post("/v1/chat/completions", again)
    assert (answer.status_code, answer.headers.get("x-vl2-ignored-fields")) == (200, None)


def test_the_model_list_says_which_model_it_is(reader: LiveServer) -> None:
    assert httpx.get(f"{reader.url}/v1/models").json()["data"][0]["kind"] == "DeepSeek-OCR"


@pytest.mark.parametrize(
    ("name", "mode"),
    [("deepseek-ocr", "tiny"), ("deepseek-ocr", "gundam"), ("deepseek-ocr-2", "small"), ("deepseek-ocr-2", "gundam")],
)
def test_a_page_is_answered_as_in_the_library(name: str, mode: str) -> None:
    vlm = load(toy_folder(name), device="cpu", tiling=mode)
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
