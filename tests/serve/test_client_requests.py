"""Requests as programs send them are answered, and what has no effect is named. The bodies were recorded from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion import Completion
from openai.types.responses import Response
from pydantic import ValidationError

from vl2 import __version__
from vl2.errors import UserError
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM
from vl2.serve.api_errors import ApiError
from vl2.serve.ignored import ignored_fields
from vl2.serve.schema.chat import ChatRequest
from vl2.serve.schema.completion import CompletionRequest
from vl2.serve.schema.responses import ResponsesRequest
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, engine_backend, events_of, serving
from .pictures import EXAMPLES, example, user

CHAT = "/v1/chat/completions"
HELLO = {"model": "nano", "messages": [user("Hello")], "max_tokens": 4}
IGNORED = "x-vl2-ignored-fields"

RECORDED = [
    pytest.param(request, id=f"{fixture['program']}-{number}-{request['scenario']}")
    for path in sorted((Path(__file__).parent / "recorded").glob("*.json"))
    for fixture in [json.loads(path.read_text(encoding="utf-8"))]
    for number, request in enumerate(fixture["requests"])
]


@pytest.fixture(scope="module")
def strict(nano: VLM) -> Iterator[LiveServer]:
    with serving(engine_backend(nano), ServerSettings(name="nano", strict=True)) as live:
        yield live


def text_of(server: LiveServer, **fields: Any) -> str:
    answer = server.post(CHAT, {**HELLO, **fields})
    assert answer.status_code == 200, answer.text
    content: str = answer.json()["choices"][0]["message"]["content"]
    return content


@pytest.mark.parametrize("request_", RECORDED)
def test_what_programs_send_is_answered(server: LiveServer, request_: dict[str, Any]) -> None:
    path, body = request_["path"], request_["body"]
    bound = next((name for name in ("max_completion_tokens", "max_output_tokens") if name in body), "max_tokens")
    if path == "/v1/responses":
        bound = "max_output_tokens"
    # Long answers prove nothing more.
    body = {**body, bound: min(body.get(bound) or 16, 16)}
    answer = server.post(path, body, headers=request_["headers"])
    assert answer.status_code == 200, answer.text
    kind: Any = {CHAT: ChatCompletion, "/v1/completions": Completion, "/v1/responses": Response}[path]
    if not body.get("stream"):
        made = kind.model_validate(answer.json())
        assert made.usage.total_tokens > 0
        return
    events = events_of(answer.text)
    if path == "/v1/responses":
        assert events[-1]["type"] in ("response.completed", "response.incomplete")
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        assert Response.model_validate(events[-1]["response"]).output_text == text
        return
    assert events[-1] == "[DONE]"
    if path == CHAT:
        chunks: list[Any] = [ChatCompletionChunk.model_validate(event) for event in events[:-1]]
    else:
        # In a piece of a completion the reason is null, which the client's own type does not say.
        chunks = [Completion.construct(**event) for event in events[:-1]]
    reasons = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(reasons) == (body.get("n") or 1)
    if (body.get("stream_options") or {}).get("include_usage"):
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens > 0


def test_fields_without_effect_are_named_and_change_nothing(server: LiveServer) -> None:
    plain = server.post(CHAT, HELLO)
    assert IGNORED not in plain.headers
    ignored = {
        "run_as": "root",
        "tools": [{"type": "web_search", "search_context_size": "low"}],
        "reasoning_effort": "low",
        "messages": [{**HELLO["messages"][0], "id": "m1"}],  # type: ignore[index]
        "wörd, two\r\n": 1,
    }
    for is_stream in (False, True):
        answer = server.post(CHAT, {**HELLO, **ignored, "stream": is_stream})
        named = answer.headers[IGNORED].split(", ")
        assert sorted(named) == ["messages[].id", "reasoning_effort", "run_as", "tools[].type", "w?rd??two??"]
    assert text_of(server, **ignored) == plain.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("fields", "value"), [({"": 1}, '""'), ({"a": 1, "": 1}, 'a, ""'), ({" ": 1}, "?"), ({"\t,": 1, "b ": 1}, "??, b?")]
)
def test_names_that_no_header_may_hold_are_told_all_the_same(
    fields: dict[str, int], value: str, server: LiveServer
) -> None:
    answer = server.post(CHAT, {**HELLO, **fields})
    assert (answer.status_code, answer.headers[IGNORED]) == (200, value)


def test_the_header_is_bounded_whatever_the_names_are(server: LiveServer) -> None:
    answer = server.post(CHAT, {**HELLO, **{f"é{'x' * 5000}{i}": 1 for i in range(1000)}})
    assert answer.status_code == 200
    value = answer.headers[IGNORED]
    assert value.isascii()
    assert len(value) < 4000
    assert value.endswith("...")


@pytest.mark.parametrize(
    "fields",
    [
        {"run_as": "root"},
        {"tools": [{"type": "web_search"}]},
        {"functions": [{"name": "f"}]},
        {"reasoning_effort": "high"},
        {"stream_options": {"continuous_usage_stats": True}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
    ],
)
def test_a_strict_server_refuses_what_another_ignores(strict: LiveServer, server: LiveServer, fields: Any) -> None:
    refused = strict.post(CHAT, {**HELLO, **fields})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["code"] == "unknown_parameter"
    assert error["param"] == server.post(CHAT, {**HELLO, **fields}).headers[IGNORED]
    assert "unknown field" in error["message"]


HARMLESS: list[dict[str, Any]] = [
    {"tool_choice": "auto"},
    {"tool_choice": "none", "tools": [{"type": "function", "function": {"name": "f"}}]},
    {"tools": [], "functions": [], "function_call": "none", "parallel_tool_calls": False},
    {"min_tokens": 0, "ignore_eos": False, "stop_token_ids": [], "bad_words": [], "use_beam_search": False},
    {"top_k": -1, "stop": [], "n": 1, "seed": -1, "repetition_penalty": 1.0},
    {"frequency_penalty": 0.0, "presence_penalty": 0, "logit_bias": {}},
    {"modalities": ["text"], "prediction": None, "audio": None, "web_search_options": None},
    {"reasoning_effort": "none", "verbosity": "medium", "service_tier": "auto", "store": False, "metadata": None},
    {"stream_options": {"include_usage": False, "continuous_usage_stats": False}},
]


@pytest.mark.parametrize("fields", HARMLESS)
def test_values_that_ask_for_nothing_are_taken_even_by_a_strict_server(
    strict: LiveServer, server: LiveServer, fields: Any
) -> None:
    assert text_of(strict, **fields) == text_of(server)
    for live in (strict, server):
        assert IGNORED not in live.post(CHAT, {**HELLO, **fields}).headers


@pytest.mark.parametrize("name", [*ChatRequest.model_fields, "a_field_of_tomorrow"])
def test_every_field_but_two_may_be_null(strict: LiveServer, server: LiveServer, name: str) -> None:
    if name in ("model", "messages"):
        return
    # Without a limit an answer to "Hello" goes on for thousands of tokens, and this one for a word.
    asked = user("What does the image say?", example("word.png"))
    assert text_of(strict, messages=[asked], **{name: None}) != ""


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
        (CHAT, {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        (CHAT, {"function_call": {"name": "f"}}, "function_call"),
        (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
        (CHAT, {"ignore_eos": True}, "ignore_eos"),
        (CHAT, {"min_tokens": 2}, "min_tokens"),
        (CHAT, {"stop_token_ids": [5]}, "stop_token_ids"),
        (CHAT, {"guided_json": {"type": "object"}}, "guided_json"),
        (CHAT, {"frequency_penalty": 2.5}, "frequency_penalty"),
        (CHAT, {"logit_bias": {"a": 1}}, "logit_bias.a"),
        (CHAT, {"messages": [user("x"), {"role": "user", "content": [{"type": "input_audio"}]}]},
         "messages[1].content[0]"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "x", "suffix": "y"}, "suffix"),
        ("/v1/completions", {"prompt": "x", "best_of": 2}, None),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": [1, "x"]}, "prompt"),
        ("/v1/completions", {"prompt": [True]}, "prompt"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "m"}]}, "input[0]"),
    ],
)  # fmt: skip
def test_what_would_change_the_answer_and_cannot_be_had_is_refused(
    server: LiveServer, path: str, fields: Any, param: str | None
) -> None:
    answer = server.post(path, {"model": "nano", **(HELLO if path == CHAT else {}), **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def tokens_of(server: LiveServer, messages: list[dict[str, Any]], path: str = "/tokenize") -> str:
    """Return the prompt that messages become, as text."""
    made = server.post(path, {"messages": messages, "return_token_strs": True}).json()
    ids = made["tokens"]
    prompt: str = server.post("/detokenize", {"tokens": ids}).json()["prompt"]
    return prompt.removeprefix("<｜begin▁of▁sentence｜>").replace("<｜end▁of▁sentence｜>", "<eos>")


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (
            [("system", "Be brief."), ("developer", "Be kind."), ("user", "Hi")],
            "Be brief.\nBe kind.<|User|>: Hi\n\n<|Assistant|>:",
        ),
        (
            [("user", "Hi"), ("assistant", "Yes?"), ("system", "Be brief."), ("user", "Go on")],
            "<|User|>: Hi\n\n<|Assistant|>:Yes?<eos><|User|>: Be brief.\nGo on\n\n<|Assistant|>:",
        ),
        (
            [("assistant", "Hello!"), ("user", "Hi")],
            "<|User|>: \n\n<|Assistant|>:Hello!<eos><|User|>: Hi\n\n<|Assistant|>:",
        ),
        (
            [("user", "Hi"), ("assistant", "One."), ("assistant", "Two."), ("user", "Go on")],
            "<|User|>: Hi\n\n<|Assistant|>:One.\nTwo.<eos><|User|>: Go on\n\n<|Assistant|>:",
        ),
        ([("system", "Say hello.")], "<|User|>: Say hello.\n\n<|Assistant|>:"),
    ],
)
def test_messages_in_any_order_become_turns(server: LiveServer, messages: Any, prompt: str) -> None:
    made = tokens_of(server, [{"role": role, "content": content} for role, content in messages])
    assert made == prompt


CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
REPLAYED = (
    "<|User|>: Weather?\n\n<|Assistant|>:Let me see.\n"
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call><eos>'
    "<|User|>: Result of get_weather: 22 degrees\nAnd Rome?\n\n<|Assistant|>:"
)  # fmt: skip


@pytest.mark.parametrize(
    "result",
    [
        {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "22 degrees"}]},
        {"role": "function", "name": "get_weather", "content": "22 degrees"},
    ],
)
def test_a_history_with_tools_is_told_as_text(server: LiveServer, result: Any) -> None:
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        result,
        {"role": "user", "content": "And Rome?"},
    ]
    assert tokens_of(server, messages) == REPLAYED


def test_responses_tell_a_history_with_tools_alike(server: LiveServer) -> None:
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "get_weather", "arguments": '{"city": "Paris"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "22 degrees"},
        {"role": "user", "content": "And Rome?"},
    ]
    made = server.post("/v1/responses", {"model": "nano", "input": items, "max_output_tokens": 6}).json()
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "22 degrees"},
        {"role": "user", "content": "And Rome?"},
    ]
    chat = server.post(CHAT, {**HELLO, "messages": messages, "max_tokens": 6}).json()
    assert made["usage"]["input_tokens"] == chat["usage"]["prompt_tokens"]
    assert made["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


def test_pictures_come_in_every_form_that_clients_know(server: LiveServer, nano: VLM) -> None:
    reply = nano.chat("Look", images=[EXAMPLES / "line.png"], max_new_tokens=4)
    url = example("line.png")
    data = url.partition(",")[2]
    forms: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "image", "image": url},
        {"type": "image", "url": url},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"},
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "image", "data": data, "mimeType": "image/png"},
        {"type": "image", "data": data, "mimeType": "text/html;base64,PHN2Zz4=,"},
    ]
    for form in forms:
        for text in ({"type": "text", "text": "Look"}, {"type": "input_text", "text": "Look"}, "Look"):
            messages = [{"role": "user", "content": [form, text]}]
            assert text_of(server, messages=messages) == reply.text, form
        asked = {"model": "nano", "input": messages, "max_output_tokens": 4}
        assert server.post("/v1/responses", asked).json()["output"][0]["content"][0]["text"] == reply.text


def test_pictures_can_be_put_before_the_text(server: LiveServer, nano: VLM) -> None:
    first = user("What does the image say?", example("word.png"))
    last = {**first, "content": first["content"][::-1]}
    with serving(engine_backend(nano), ServerSettings(name="nano", images_first=True)) as live:
        mended, unchanged = (tokens_of(live, [message]) for message in (last, first))
    assert mended == unchanged == tokens_of(server, [first]) != tokens_of(server, [last])


def test_a_tool_may_return_a_picture(server: LiveServer) -> None:
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "content": [{"type": "image_url", "image_url": example("line.png")}],
    }
    messages = [user("Look"), {"role": "assistant", "content": None, "tool_calls": [CALL]}, result]
    made = server.post(CHAT, {**HELLO, "messages": messages}).json()
    assert made["usage"]["prompt_tokens_details"]["visual_tokens"] > 0


def test_a_refusal_that_is_sent_back_is_text(server: LiveServer) -> None:
    for message in (
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ):
        prompt = tokens_of(server, [user("Hi"), message, user("Why?")])
        assert prompt == "<|User|>: Hi\n\n<|Assistant|>:No.<eos><|User|>: Why?\n\n<|Assistant|>:"


def test_penalties_and_bias_are_those_of_the_python_api(server: LiveServer, nano: VLM) -> None:
    prompt = "Hello there"
    sample = nano.processor.encode_prompt(prompt)
    never_ends = {nano.processor.tokenizer.eos_id: -100}

    def own(bias: dict[int, int], **fields: Any) -> str:
        options = GenerateOptions(max_new_tokens=12, logit_bias=never_ends | bias, **fields)
        return "".join(event.piece for event in nano.sample_events(sample, options))

    def served(bias: dict[int, int], **fields: Any) -> str:
        asked = {"model": "nano", "prompt": prompt, "max_tokens": 12, **fields}
        asked["logit_bias"] = {str(token_id): value for token_id, value in (never_ends | bias).items()}
        text: str = server.post("/v1/completions", asked).json()["choices"][0]["text"]
        return text

    assert served({}) == own({})
    penalties: tuple[dict[str, float], ...] = ({"frequency_penalty": 1.5}, {"presence_penalty": 2})
    first, second = (nano.processor.tokenizer.encode(letter)[0] for letter in "ab")
    for fields in penalties:
        # Between where only the first letter is chosen and where the second is, a penalty on the first decides.
        biases = ({first: 60, second: bias} for bias in sorted(range(100), key=lambda bias: abs(bias - 60)))
        unsure = next(bias for bias in biases if own(bias, **fields) != own(bias))
        assert served(unsure, **fields) == own(unsure, **fields)
    for bias, letter in (({first: 100, second: 60}, "a"), ({first: -100, second: 60}, "b")):
        assert served(bias) == own(bias) == 12 * letter


def test_token_ids_are_a_prompt_as_their_text_is(server: LiveServer) -> None:
    told = server.post("/tokenize", {"model": "nano", "prompt": "The sky is", "return_token_strs": True}).json()
    assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
    assert told["max_model_len"] == 4096
    assert "".join(told["token_strs"]) == "<｜begin▁of▁sentence｜>The sky is"
    bare = server.post("/tokenize", {"prompt": "The sky is", "add_special_tokens": False}).json()
    assert bare["tokens"] == told["tokens"][1:]
    assert bare["token_strs"] is None

    def ask(prompt: Any) -> list[Any]:
        made = server.post("/v1/completions", {"model": "nano", "prompt": prompt, "max_tokens": 5}).json()
        return [made["choices"][0]["text"], len(made["choices"]), made["usage"]["prompt_tokens"]]

    text, _, num_tokens = ask("The sky is")
    assert ask(told["tokens"]) == [text, 1, num_tokens]
    assert ask([told["tokens"]] * 2) == [text, 2, 2 * num_tokens]


def test_token_ids_hold_the_places_of_pictures(server: LiveServer, nano: VLM) -> None:
    tokenizer = nano.processor.tokenizer
    ids = [tokenizer.bos_id, *tokenizer.encode("<image>\nThe total is", "all")]
    asked = {"model": "nano", "images": [example("bill.png")], "max_tokens": 4}
    by_text = server.post("/v1/completions", {**asked, "prompt": "<image>\nThe total is"}).json()
    by_ids = server.post("/v1/completions", {**asked, "prompt": ids}).json()
    assert by_ids["choices"] == by_text["choices"]
    assert by_ids["usage"]["prompt_tokens_details"]["visual_tokens"] > 0
    missing = server.post("/v1/completions", {"model": "nano", "prompt": ids})
    assert missing.status_code == 400
    assert "1 <image> in the token ids, but 0 images" in missing.json()["error"]["message"]


def test_messages_are_counted_with_their_pictures(server: LiveServer) -> None:
    messages = [user("What is the total?", example("bill.png"))]
    told = server.post("/tokenize", {"messages": messages}).json()
    answered = server.post(CHAT, {**HELLO, "messages": messages}).json()
    assert told["count"] == answered["usage"]["prompt_tokens"]
    for body in ({}, {"prompt": "x", "messages": messages}, {"messages": []}):
        assert server.post("/tokenize", body).status_code == 400


def test_work_beside_v1_needs_the_key_too(nano: VLM) -> None:
    with serving(engine_backend(nano), ServerSettings(name="nano", api_key="secret")) as live:
        for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [5]})):
            refused = live.post(path, body)
            assert refused.status_code == 401
            assert refused.json()["error"]["code"] == "invalid_api_key"
            assert live.post(path, body, headers={"Authorization": "Bearer secret"}).status_code == 200


def test_the_version_is_told(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/version").json() == {"version": __version__}


def test_errors_have_openais_codes(server: LiveServer) -> None:
    def error(answer: httpx.Response) -> tuple[int, str, str]:
        told = answer.json()["error"]
        return answer.status_code, told["type"], told["code"]

    wrong = "invalid_request_error"
    assert error(server.post(CHAT, {**HELLO, "model": "x"})) == (404, wrong, "model_not_found")
    assert error(server.post(CHAT, {**HELLO, "temperature": 3})) == (400, wrong, "decimal_above_max_value")
    assert error(server.post(CHAT, {**HELLO, "max_tokens": 0})) == (400, wrong, "integer_below_min_value")
    assert error(server.post(CHAT, {**HELLO, "stop": 5})) == (400, wrong, "invalid_type")
    assert error(server.post(CHAT, {"model": "nano"})) == (400, wrong, "missing_required_parameter")
    assert error(server.post(CHAT, {**HELLO, "messages": []})) == (400, wrong, "array_below_min_length")
    long = server.post("/v1/completions", {"model": "nano", "prompt": [5] * 5000})
    assert error(long) == (400, wrong, "context_length_exceeded")
    assert (
        "maximum context length is 4096 tokens. However, your prompt has 5000 tokens" in long.json()["error"]["message"]
    )

    def picture(url: str) -> tuple[int, str, str]:
        return error(server.post(CHAT, {**HELLO, "messages": [user("Look", url)]}))

    assert picture("data:image/png;base64,%%%") == (400, wrong, "invalid_base64_image")
    assert picture("data:image/png;base64,aGVsbG8gaGVsbG8=") == (400, wrong, "invalid_image_format")
    assert picture("http://127.0.0.1/a.png") == (400, wrong, "invalid_image_url")
    assert picture("ftp://example.org/base64.png") == (400, wrong, "invalid_image_url")
    assert picture(example("line.png")[:400]) == (400, wrong, "invalid_image")

    lost = server.post("/v1/embeddings", {})
    assert error(lost) == (404, wrong, "unknown_url")
    assert "POST /v1/embeddings" in lost.json()["error"]["message"]
    other = httpx.get(server.url + CHAT)
    assert error(other) == (405, wrong, "method_not_supported")
    assert other.headers["allow"] == "POST"
    assert "takes POST, not GET" in other.json()["error"]["message"]


TYPES = ["text", "image", "image_url", "input_image", "refusal", "thinking", "message", "reasoning", "function_call",
         "function_call_output", "json_schema", "allowed_tools", "function", "web_search"]  # fmt: skip
WORDS = ["", "auto", "none", "user", "tool", *TYPES]
KEYS = ["type", "role", "content", "text", "name", "function", "arguments", "url", "image", "id", "image_url", "source",
        "data", "media_type", "output", "call_id", "json_schema", "schema", "mode", "parameters", "tools"]  # fmt: skip
leaves = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-3, 3) | st.sampled_from(WORDS)
values: st.SearchStrategy[Any] = st.deferred(
    lambda: leaves | st.lists(values, max_size=2) | st.dictionaries(st.sampled_from(KEYS), values, max_size=3)
)
typed = st.tuples(st.sampled_from(TYPES), st.dictionaries(st.sampled_from(KEYS), values, max_size=4)).map(
    lambda both: {**both[1], "type": both[0]}
)
calls = st.lists(st.fixed_dictionaries({}, optional={"function": values, "id": values}), max_size=2)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])},
    optional={
        "content": values | st.lists(typed | st.text(max_size=3), max_size=3),
        "tool_calls": values | calls,
        "function_call": values,
        "tool_call_id": values,
        "name": values,
    },
)


@pytest.mark.parametrize("model", [ChatRequest, ResponsesRequest, CompletionRequest])
def test_no_value_of_any_field_is_more_than_wrong(model: Any) -> None:
    """What the body is made into never fails otherwise than with what becomes a 400."""
    key = {ChatRequest: "messages", ResponsesRequest: "input", CompletionRequest: "prompt"}[model]
    ids = st.lists(st.lists(st.integers(0, 9)), max_size=3)
    inputs = values | st.text() | st.lists(messages | typed | values, max_size=4) | ids

    @given(name=st.sampled_from(sorted(model.model_fields)), value=values | typed, given_input=inputs)
    @settings(deadline=None, max_examples=150, derandomize=True)
    def check(name: str, value: Any, given_input: Any) -> None:
        try:
            made = model.model_validate({"model": "nano", name: value, key: given_input})
            list(ignored_fields(made))
            made.options(max_tokens=4)
            if model is CompletionRequest:
                made.prompts()
            else:
                made.turns()
                made.tool_use()
        except (ValidationError, UserError, ApiError):
            return

    check()
