"""`--engine vllm` against a fake: what vLLM is asked, and what clients get of its tokens. No real one runs here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vl2.errors import UserError
from vl2.infer.vlm import VLM
from vl2.process.processor import Processor
from vl2.process.tiling import Tiling
from vl2.serve.settings import ServerSettings
from vl2.serve.vllm_backend import VllmBackend

from .fake_vllm import FakeVllm, install
from .live_server import LiveServer, events_of, serving
from .pictures import example, user

CHAT = "/v1/chat/completions"
ANSWER = "<|ref|>cup<|/ref|><|det|>[[0, 0, 500, 999]]<|/det|>"


@pytest.fixture
def processor(nano: VLM) -> Processor:
    """The built-in model's processor without its image scale, which vLLM does not know."""
    return replace(nano.processor, config=replace(nano.processor.config, image_scale=1.0))


@pytest.fixture
def fake(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    tokenizer = nano.processor.tokenizer
    made = FakeVllm([*tokenizer.encode(ANSWER), tokenizer.eos_id])
    install(monkeypatch, made)
    return made


@pytest.fixture
def live(nano: VLM, processor: Processor, fake: FakeVllm) -> Iterator[LiveServer]:
    backend = VllmBackend(nano.folder, processor, max_context=4096, max_images=16)
    with serving(backend, ServerSettings(name="nano")) as server:
        yield server


def test_clients_get_the_tags_and_the_boxes_of_what_vllm_says(live: LiveServer, fake: FakeVllm) -> None:
    asked = {"model": "nano", "messages": [user("Find the cup.", example("scene.png"))], "logprobs": True,
             "top_logprobs": 1}  # fmt: skip
    made = live.post(CHAT, asked).json()
    message = made["choices"][0]["message"]
    assert message["content"] == ANSWER
    assert message["boxes"][0]["label"] == "cup"
    assert message["boxes"][0]["xyxy_999"] == [0, 0, 500, 999]
    assert made["choices"][0]["finish_reason"] == "stop"
    assert made["usage"]["completion_tokens"] == len(fake.token_ids)
    assert {len(entry["top_logprobs"]) for entry in made["choices"][0]["logprobs"]["content"]} == {1}
    streamed = events_of(live.post(CHAT, {**asked, "stream": True}).text)
    assert "".join(c["delta"].get("content") or "" for e in streamed[:-1] for c in e["choices"]) == ANSWER
    assert not fake.aborted


def test_vllm_gets_our_prompt_with_one_token_for_each_picture(live: LiveServer, fake: FakeVllm, nano: VLM) -> None:
    live.post(CHAT, {"model": "nano", "messages": [user("Compare.", example("scene.png"), example("bill.png"))]})
    (asked,) = fake.asked
    tokenizer = nano.processor.tokenizer
    ids = asked.prompt["prompt_token_ids"]
    assert ids.count(tokenizer.image_id) == 2
    assert ids[:2] == [tokenizer.bos_id, tokenizer.user_id]
    assert tokenizer.decode(i for i in ids if i != tokenizer.image_id).endswith("Compare.\n\n<|Assistant|>:")
    assert [picture.mode for picture in asked.prompt["multi_modal_data"]["image"]] == ["RGB", "RGB"]
    assert fake.arguments["hf_overrides"] == {"architectures": ["DeepseekVLV2ForCausalLM"]}


def test_vllm_finds_all_special_tokens_in_its_tokenizer_file(nano: VLM, processor: Processor, fake: FakeVllm) -> None:
    backend = VllmBackend(nano.folder, processor, max_context=64, max_images=1, more={"enforce_eager": True})
    arguments = vars(backend._arguments)
    assert arguments["enforce_eager"] is True
    folder = Path(arguments["model"])
    assert (folder / "model.safetensors").samefile(nano.folder / "model.safetensors")
    added = {
        entry["content"]: entry["id"] for entry in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    }
    assert added.items() >= nano.processor.tokenizer.special_ids.items()
    asyncio.run(backend.stop())
    assert not folder.exists()


def test_options_and_schemas_reach_vllm(live: LiveServer, fake: FakeVllm) -> None:
    schema = {"type": "object", "properties": {}}
    live.post(
        CHAT,
        {
            "model": "nano",
            "messages": [user("Hello")],
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 3,
            "max_tokens": 7,
            "frequency_penalty": 0.25,
            "presence_penalty": -0.5,
            "logit_bias": {"5": -100},
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        },
    )
    (asked,) = fake.asked
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (0.5, 0.9, 3, 7)
    assert (sampling.frequency_penalty, sampling.presence_penalty, sampling.logit_bias) == (0.25, -0.5, {5: -100.0})
    assert sampling.structured_outputs.json == '{"type": "object", "properties": {}}'


def test_a_stop_text_ends_the_work_of_vllm_too(live: LiveServer, fake: FakeVllm) -> None:
    made = live.post(CHAT, {"model": "nano", "messages": [user("Hello")], "stop": "<|/ref|>"}).json()
    assert made["choices"][0]["message"]["content"] == "<|ref|>cup"
    assert made["choices"][0]["finish_reason"] == "stop"
    assert fake.aborted == [fake.asked[0].id]


def test_what_vllm_cannot_do_is_refused(live: LiveServer, nano: VLM) -> None:
    for field, value in (("no_repeat_ngram_size", 3), ("well_formed_boxes", True)):
        answer = live.post(CHAT, {"model": "nano", "messages": [user("Hello")], field: value})
        assert answer.status_code == 400
        assert "vLLM" in answer.json()["error"]["message"]
    tiled = nano.processor.with_tiling(Tiling.parse("per-image"))
    with pytest.raises(UserError, match="paper's tiling rule only"):
        VllmBackend(nano.folder, tiled, max_context=4096, max_images=16)
    with pytest.raises(UserError, match=r"image_scale, which is 1\.5: serve it without --engine vllm"):
        VllmBackend(nano.folder, nano.processor, max_context=4096, max_images=16)


def test_a_missing_vllm_is_said_to_be_missing(nano: VLM, processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    with pytest.raises(UserError, match="pip install vllm"):
        VllmBackend(nano.folder, processor, max_context=4096, max_images=16)
