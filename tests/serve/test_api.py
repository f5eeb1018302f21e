"""Keys, origins, metrics, adapters and what else stands around an answer."""

from __future__ import annotations

import concurrent.futures
import json
import re
from pathlib import Path

import httpx
import pytest
import torch

import vl2
from vl2.infer import constraint, constraint_boxes
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.engine.scheduler import EngineLimits
from vl2.infer.vlm import VLM
from vl2.lora.attach import add_lora
from vl2.lora.peft_files import save_adapter
from vl2.lora.spec import LoRASpec
from vl2.serve.engine_backend import EngineBackend
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, engine_backend, events_of, serving
from .pictures import EXAMPLES, example, user

HELLO = {"model": "nano", "messages": [user("Hello")], "max_tokens": 4}
CHAT = "/v1/chat/completions"


@pytest.mark.every_model
def test_a_key_is_asked_for_where_one_is_set(nano: VLM) -> None:
    with serving(engine_backend(nano), ServerSettings(name="nano", api_key="secret")) as live:
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Basic secret"}, 401),
            ({"Authorization": "Bearer sécret".encode()}, 401),
            ({"Authorization": "Bearer secret"}, 200),
            ({"X-API-Key": "secret"}, 200),
        ):
            assert live.post(CHAT, HELLO, headers=headers).status_code == status
            assert httpx.get(f"{live.url}/v1/models", headers=headers).status_code == status
        wrong = live.post(CHAT, HELLO).json()["error"]
        assert (wrong["type"], wrong["code"]) == ("authentication_error", "invalid_api_key")
        for path in ("/health", "/ready", "/metrics"):
            assert httpx.get(live.url + path).status_code == 200


def test_what_constraints_need_of_the_vocabulary_is_built_before_the_first_request(nano: VLM) -> None:
    constraint.llguidance_tokenizer.cache_clear()
    constraint_boxes._vocabulary.cache_clear()
    with serving(engine_backend(nano), ServerSettings(name="nano")):
        assert constraint.llguidance_tokenizer.cache_info().currsize == 1
        assert constraint_boxes._vocabulary.cache_info().currsize == 1


@pytest.mark.every_model
def test_only_named_origins_may_ask_from_a_page(nano: VLM) -> None:
    settings = ServerSettings(name="nano", api_key="secret", cors_origins=("https://friend.example",))
    with serving(engine_backend(nano), settings) as live:

        def preflight(origin: str) -> httpx.Response:
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
                       "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
            return httpx.options(live.url + CHAT, headers=headers)

        friend = preflight("https://friend.example")
        assert friend.status_code == 200
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        assert preflight("https://stranger.example").status_code == 400
        # An error can be read by the page as well.
        refused = live.post(CHAT, HELLO, headers={"Origin": "https://friend.example"})
        assert refused.status_code == 401
        assert refused.headers["access-control-allow-origin"] == "https://friend.example"


@pytest.mark.every_model
def test_no_origin_is_allowed_unless_said(server: LiveServer) -> None:
    answer = server.post(CHAT, HELLO, headers={"Origin": "https://stranger.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.every_model
def test_a_picture_in_an_allowed_folder_is_read_by_name_and_by_url(server: LiveServer, nano: VLM) -> None:
    reply = nano.chat("Look", images=[EXAMPLES / "line.png"], max_new_tokens=4)
    for source in ("line.png", str(EXAMPLES / "line.png"), (EXAMPLES / "line.png").as_uri()):
        made = server.post(CHAT, {"model": "nano", "messages": [user("Look", source)], "max_tokens": 4})
        assert made.json()["choices"][0]["message"]["content"] == reply.text


@pytest.mark.every_model
def test_the_id_of_a_request_is_the_clients_own_where_it_is_harmless(server: LiveServer) -> None:
    assert server.post(CHAT, HELLO, headers={"X-Request-ID": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    for bad in ("a b", "x" * 65, "<script>"):
        made = server.post(CHAT, HELLO, headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert re.fullmatch(r"req-[0-9a-f]{32}", made)


def test_metrics_count_what_was_done(nano: VLM) -> None:
    vlm = VLM(nano.model, nano.processor, folder=nano.folder)  # with caches of its own
    with serving(engine_backend(vlm), ServerSettings(name="nano")) as live:
        asked = {"model": "nano", "messages": [user("Look", example("bill.png"))], "max_tokens": 5}
        made = [live.post(CHAT, asked).json()["usage"] for _ in range(2)]
        live.post(CHAT, {"model": "other", "messages": []})
        text = httpx.get(f"{live.url}/metrics").text
    numbers = dict(re.findall(r"^(vl2_\S+) (\S+)$", text, re.MULTILINE))
    assert float(numbers["vl2_generated_tokens_total"]) == sum(usage["completion_tokens"] for usage in made)
    assert float(numbers["vl2_prompt_tokens_total"]) == sum(usage["prompt_tokens"] for usage in made)
    assert float(numbers["vl2_tiles_total"]) == 10  # two by two and the overview, twice
    assert float(numbers["vl2_encoder_cache_misses_total"]) == 1
    # The second time everything was known but the passes that were too short to keep apart.
    assert float(numbers["vl2_prefix_cache_reused_tokens_total"]) == made[1]["prompt_tokens_details"]["cached_tokens"]
    assert made[1]["prompt_tokens_details"]["cached_tokens"] > 0 == made[0]["prompt_tokens_details"]["cached_tokens"]
    assert float(numbers["vl2_time_to_first_token_seconds_count"]) == 2
    assert float(numbers["vl2_queue_seconds_count"]) == 2
    assert float(numbers["vl2_queue_length"]) == float(numbers["vl2_running"]) == 0
    assert float(numbers['vl2_requests_total{path="/v1/chat/completions",status="200"}']) == 2
    assert float(numbers['vl2_requests_total{path="/v1/chat/completions",status="400"}']) == 1


def test_an_adapter_is_a_model_of_its_own_beside_the_base(tmp_path: Path) -> None:
    vlm = vl2.load("nano")
    add_lora(vlm.model, LoRASpec(rank=4, targets=("attention", "experts")), seed=3)
    with torch.no_grad():
        for name, parameter in vlm.model.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(4))
    save_adapter(vlm.model, tmp_path / "tuned", "nano")
    base, merged = vl2.load("nano"), vl2.load("nano", adapter=tmp_path / "tuned")
    adapters = {"tuned": tmp_path / "tuned"}
    limits = EngineLimits(max_num_seqs=4, max_context=4096, cache_tokens=8192)
    asked = {"messages": [user("Tell me a story.")], "max_tokens": 12}
    expected = {
        "nano": base.chat("Tell me a story.", max_new_tokens=12).text,
        "tuned": merged.chat("Tell me a story.", max_new_tokens=12).text,
    }
    assert expected["nano"] != expected["tuned"]
    settings = ServerSettings(name="nano", adapters=adapters)
    with serving(EngineBackend(vl2.load("nano"), limits, adapters), settings) as live:
        cards = httpx.get(f"{live.url}/v1/models").json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [("nano", None), ("tuned", "nano")]

        with concurrent.futures.ThreadPoolExecutor() as pool:
            names = ["nano", "tuned"] * 3
            answers = list(pool.map(lambda name: live.post(CHAT, {**asked, "model": name}).json(), names))
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == [expected[name] for name in names]


@pytest.mark.every_model
def test_streams_of_several_choices_carry_their_index(server: LiveServer) -> None:
    asked = {**HELLO, "n": 2, "seed": 1, "temperature": 1.2, "stream": True, "logprobs": True, "top_logprobs": 1}
    events = events_of(server.post(CHAT, asked).text)
    assert events[-1] == "[DONE]"
    whole = server.post(CHAT, {**asked, "stream": False}).json()["choices"]
    for choice in whole:
        mine = [c for event in events[:-1] for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(c["delta"].get("content") or "" for c in mine).strip() == choice["message"]["content"]
        told = [entry for c in mine if c["logprobs"] for entry in c["logprobs"]["content"]]
        assert told == choice["logprobs"]["content"]


@pytest.mark.every_model
def test_the_json_mode_gives_an_object(server: LiveServer) -> None:
    made = server.post(CHAT, {**HELLO, "max_tokens": 200, "response_format": {"type": "json_object"}}).json()
    choice = made["choices"][0]
    assert choice["message"]["content"].startswith("{")
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(choice["message"]["content"]), dict)


def test_boxes_can_be_held_to_their_form(server: LiveServer, nano: VLM) -> None:
    question = "<|ref|>green house<|/ref|>."
    reply = nano.chat(question, images=[EXAMPLES / "scene.png"], max_new_tokens=48, constraint=WellFormedBoxes())
    asked = {
        "model": "nano",
        "messages": [user(question, example("scene.png"))],
        "max_tokens": 48,
        "well_formed_boxes": True,
    }
    message = server.post(CHAT, asked).json()["choices"][0]["message"]
    assert message["content"] == reply.text
    assert message["boxes"] == reply.to_dict()["boxes"] != []


@pytest.mark.every_model
def test_the_description_of_the_api_is_served(server: LiveServer) -> None:
    description = httpx.get(f"{server.url}/openapi.json").json()
    assert {CHAT, "/v1/responses", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics"} <= set(
        description["paths"]
    )
    assert "ChatRequest" in description["components"]["schemas"]
    for path in (CHAT, "/v1/responses", "/v1/completions"):
        content = description["paths"][path]["post"]["responses"]["200"]["content"]
        assert set(content) == {"application/json", "text/event-stream"}


@pytest.mark.every_model
def test_too_many_requests_are_told_to_come_back(nano: VLM) -> None:
    with serving(engine_backend(nano, max_num_seqs=1, max_waiting=1), ServerSettings(name="nano")) as live:
        asked = {**HELLO, "n": 4, "max_tokens": 300}
        answer = live.post(CHAT, asked)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert int(answer.headers["retry-after"]) > 0
        live.wait_until_idle()
        assert live.post(CHAT, HELLO).status_code == 200


@pytest.mark.every_model
def test_a_server_that_is_draining_is_not_ready(nano: VLM) -> None:
    with serving(engine_backend(nano), ServerSettings(name="nano")) as live:
        assert httpx.get(f"{live.url}/ready").json() == {"status": "ready"}
        live.service.drain_state.is_draining = True
        assert httpx.get(f"{live.url}/ready").status_code == 503
        assert httpx.get(f"{live.url}/health").status_code == 200
        refused = live.post(CHAT, HELLO)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
