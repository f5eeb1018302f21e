"""Tool calls in both of OpenAI's APIs: the official client gets whole, valid calls, or none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from openai import OpenAI
from openai.types.responses import Response

from tests.web.scripted_backend import ScriptedBackend
from vl2.infer.vlm import VLM
from vl2.process.tool_calls import Tool, ToolUse
from vl2.serve.settings import ServerSettings

from .live_server import LiveServer, engine_backend, events_of, serving
from .pictures import example, user

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
IGNORED = "x-vl2-ignored-fields"
SCHEMAS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 7}},
        "required": ["city", "days"],
    },
    "set_light": {"type": "object", "properties": {"is_on": {"type": "boolean"}}, "required": ["is_on"]},
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "description": f"Do {name}.", "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]
NAMED = {"type": "function", "function": {"name": "set_light"}}
QUESTION = [{"role": "user", "content": "How is the weather in Paris?"}]
ASKED: dict[str, Any] = {"model": "nano", "messages": QUESTION, "tools": TOOLS, "max_tokens": 200}
TWO_CALLS = (
    "Let me see.\n"
    '<tool_call>{"name": "get_weather", "arguments": {"city": "}</tool_call>", "days": 2}}</tool_call>\n'
    '<tool_call>{"name": "set_light", "arguments": {"is_on": true}}</tool_call>'
)
CALLED = [("get_weather", {"city": "}</tool_call>", "days": 2}), ("set_light", {"is_on": True})]


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


class Saying(ScriptedBackend):
    """A backend that says what it is told, as a model that has learned to call functions would."""

    def __init__(self, nano: VLM) -> None:
        super().__init__(nano.processor)
        self.calls_tools = True

    def metric_values(self) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def saying(nano: VLM) -> Iterator[tuple[Saying, LiveServer]]:
    backend = Saying(nano)
    with serving(backend, ServerSettings(name="nano")) as live:
        yield backend, live


def parsed(calls: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls or ()]


def check(calls: list[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        jsonschema.validate(arguments, SCHEMAS[name])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_required_call_is_valid(client: OpenAI, choice: Any, temperature: float) -> None:
    made = client.chat.completions.create(
        **ASKED, tool_choice=choice, temperature=temperature, seed=1, parallel_tool_calls=False
    ).choices[0]
    ((name, arguments),) = parsed(made.message.tool_calls)
    check([(name, arguments)])
    assert choice == "required" or name == "set_light"
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)


def test_a_streamed_call_is_the_whole_one(client: OpenAI) -> None:
    fields = {**ASKED, "tool_choice": "required"}
    whole = client.chat.completions.create(**fields).choices[0]
    with client.chat.completions.stream(**fields) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    assert parsed(streamed.message.tool_calls) == parsed(whole.message.tool_calls) != []
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    chunks = [c for chunk in client.chat.completions.create(**fields, stream=True) for c in chunk.choices]
    deltas = [call for choice in chunks for call in choice.delta.tool_calls or ()]
    first = [call for call in deltas if call.id is not None]
    assert len({call.id for call in first}) == len(first) == len(whole.message.tool_calls or ())
    assert all(call.type == "function" and call.function and call.function.name for call in first)
    assert len(deltas) > 2 * len(first)


def test_responses_call_as_chat_does(client: OpenAI) -> None:
    chat = client.chat.completions.create(**ASKED, tool_choice=NAMED, parallel_tool_calls=False).choices[0]  # type: ignore[arg-type]
    fields: dict[str, Any] = {
        "model": "nano",
        "input": QUESTION,
        "tools": FLAT,
        "tool_choice": {"type": "function", "name": "set_light"},
        "parallel_tool_calls": False,
        "max_output_tokens": 200,
    }
    made = client.responses.create(**fields)
    (item,) = made.output
    assert item.type == "function_call"
    assert [(item.name, json.loads(item.arguments))] == parsed(chat.message.tool_calls)
    assert (made.status, item.status) == ("completed", "completed")
    assert [tool.name for tool in made.tools if tool.type == "function"] == list(SCHEMAS)
    with client.responses.stream(**fields) as stream:
        events = list(stream)
        final = stream.get_final_response()
    (streamed,) = final.output
    assert streamed.type == "function_call"
    assert streamed.arguments == item.arguments
    assert [event.type for event in events][:3] == [
        "response.created", "response.in_progress", "response.output_item.added",
    ]  # fmt: skip
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == item.arguments
    assert len(deltas) > 1


@pytest.mark.parametrize("num_tokens", [1, 3, 8, 15, 22, 30, 40])
def test_a_call_that_is_cut_off_is_never_passed_as_whole(client: OpenAI, num_tokens: int) -> None:
    fields = {**ASKED, "max_tokens": num_tokens, "tool_choice": "required", "parallel_tool_calls": False}
    made = client.chat.completions.create(**fields).choices[0]
    assert (made.finish_reason, made.message.tool_calls) == ("length", None)
    chunks = [c for chunk in client.chat.completions.create(**fields, stream=True) for c in chunk.choices]
    assert chunks[-1].finish_reason == "length"
    asked: Any = {"model": "nano", "input": QUESTION, "tools": FLAT, "tool_choice": "required"}
    response = client.responses.create(**asked, max_output_tokens=max(num_tokens, 16), parallel_tool_calls=False)
    assert response.status == "incomplete"
    assert "function_call" not in [item.type for item in response.output]


def test_a_stop_text_within_a_call_cuts_it_off(client: OpenAI) -> None:
    made = client.chat.completions.create(**ASKED, tool_choice=NAMED, stop=["is_on"]).choices[0]  # type: ignore[arg-type]
    assert (made.finish_reason, made.message.tool_calls) == ("length", None)


def test_an_answer_in_words_stays_one(client: OpenAI, nano: VLM) -> None:
    use = ToolUse(tools=tuple(Tool(**tool["function"]) for tool in TOOLS))
    reply = nano.chat("What is the total amount?", images=["examples/bill.png"], system=use.prompt(), max_new_tokens=12)
    asked = {**ASKED, "messages": [user("What is the total amount?", example("bill.png"))], "max_tokens": 12}
    for choice in ("auto", None):
        made = client.chat.completions.create(**asked, tool_choice=choice)  # type: ignore[arg-type]
        assert made.choices[0].message.content == reply.text != ""
        assert made.choices[0].finish_reason == reply.finish_reason
        assert made.usage is not None
        assert made.usage.prompt_tokens == reply.usage.prompt_tokens


def test_boxes_are_possible_beside_tools(client: OpenAI) -> None:
    asked = {
        **ASKED,
        "tools": TOOLS[1:],
        "messages": [user("<|ref|>green house<|/ref|>.", example("scene.png"))],
        "max_tokens": 48,
    }
    message = client.chat.completions.create(**asked).choices[0].message
    assert message.boxes  # type: ignore[attr-defined]


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": None, "tool_choice": "auto"}])
def test_without_functions_to_call_nothing_changes(server: LiveServer, fields: Any) -> None:
    plain = server.post(CHAT, {"model": "nano", "messages": QUESTION, "max_tokens": 8}).json()
    made = server.post(CHAT, {**ASKED, "max_tokens": 8, **fields}).json()
    assert made["choices"] == plain["choices"]
    assert made["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]


def test_words_then_calls_are_told_apart(saying: tuple[Saying, LiveServer]) -> None:
    backend, live = saying
    backend.text = TWO_CALLS
    client = OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    made = client.chat.completions.create(**ASKED).choices[0]
    assert (made.message.content, made.finish_reason) == ("Let me see.", "tool_calls")
    assert parsed(made.message.tool_calls) == CALLED
    with client.chat.completions.stream(**ASKED) as stream:
        contents = [event.delta for event in stream if event.type == "content.delta"]
        streamed = stream.get_final_completion().choices[0]
    assert "".join(contents) == "Let me see."
    assert parsed(streamed.message.tool_calls) == CALLED


def test_words_then_calls_are_items_of_a_response(saying: tuple[Saying, LiveServer]) -> None:
    backend, live = saying
    backend.text = TWO_CALLS
    asked = {"model": "nano", "input": QUESTION, "tools": FLAT}
    made = live.post(RESPONSES, asked).json()
    events = events_of(live.post(RESPONSES, {**asked, "stream": True}).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in done] == [0, 1, 2]
    assert events[-1]["response"]["output"] == [event["item"] for event in done]
    for response in (made, events[-1]["response"]):
        items = Response.model_validate(response).output
        assert [item.type for item in items] == ["message", "function_call", "function_call"]
        called = [(item.name, json.loads(item.arguments)) for item in items if item.type == "function_call"]
        assert called == CALLED
        assert response["output"][0]["content"][0]["text"] == "Let me see."


def test_functions_too_long_for_the_context_are_ignored_unless_a_call_is_required(server: LiveServer) -> None:
    long = [{"type": "function", "function": {"name": "f", "description": "word " * 3000}}]
    made = server.post(CHAT, {**ASKED, "max_tokens": 4, "tools": long})
    assert (made.status_code, made.headers[IGNORED]) == (200, "tools")
    required = server.post(CHAT, {**ASKED, "max_tokens": 4, "tools": long, "tool_choice": "required"})
    assert IGNORED not in required.headers
    assert required.json()["usage"]["prompt_tokens"] > 3000


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_server_without_tools_ignores_them_unless_a_call_is_required(nano: VLM, is_strict: bool) -> None:
    settings = ServerSettings(name="nano", calls_tools=False, strict=is_strict)
    with serving(engine_backend(nano), settings) as live:
        made = live.post(CHAT, {**ASKED, "max_tokens": 4})
        refused = live.post(CHAT, {**ASKED, "max_tokens": 4, "tool_choice": "required"})
    if is_strict:
        assert made.json()["error"]["param"] == "tools"
    else:
        assert (made.status_code, made.headers[IGNORED]) == (200, "tools")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tool_choice")


def test_allowed_tools_limit_what_can_be_called(client: OpenAI) -> None:
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "set_light"}}]},
    }
    made = client.chat.completions.create(**ASKED, tool_choice=allowed).choices[0]
    assert {name for name, _ in parsed(made.message.tool_calls)} == {"set_light"}


def test_a_schema_for_words_holds_beside_tools(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMAS["set_light"]}}
    made = client.chat.completions.create(**ASKED, response_format=form).choices[0]
    if made.finish_reason == "stop":
        jsonschema.validate(json.loads(made.message.content or ""), SCHEMAS["set_light"])
    else:
        check(parsed(made.message.tool_calls))
    with pytest.raises(openai.BadRequestError, match="well_formed_boxes cannot be combined with tools"):
        client.chat.completions.create(**ASKED, extra_body={"well_formed_boxes": True})


def test_tokens_of_functions_are_counted(server: LiveServer) -> None:
    counted = server.post("/tokenize", {"messages": QUESTION, "tools": TOOLS}).json()["count"]
    made = server.post(CHAT, {**ASKED, "max_tokens": 4}).json()
    assert counted == made["usage"]["prompt_tokens"]


def test_a_call_and_its_result_are_a_history(client: OpenAI) -> None:
    first = client.chat.completions.create(**ASKED, tool_choice="required").choices[0].message
    assert first.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "22 degrees"} for call in first.tool_calls]
    history: Any = [*QUESTION, first, *results]
    made = client.chat.completions.create(**{**ASKED, "messages": history}).choices[0]
    assert made.finish_reason in ("stop", "tool_calls", "length")
    check(parsed(made.message.tool_calls))
