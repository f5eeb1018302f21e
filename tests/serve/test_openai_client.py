"""The official client against a live server: what it gets is what the Python API says."""

from __future__ import annotations

import json

import openai
import pytest
from openai import OpenAI

from vl2.infer.engine.request import Output
from vl2.infer.vlm import VLM
from vl2.serve.exchange import AnswerText

from .live_server import LiveServer
from .pictures import EXAMPLES, example, user

QUESTION = "What is the total amount?"


@pytest.fixture(scope="module")
def client(server: LiveServer) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.every_model
def test_an_answer_about_an_image_is_that_of_the_python_api(client: OpenAI, nano: VLM) -> None:
    reply = nano.chat(QUESTION, images=[EXAMPLES / "bill.png"], max_new_tokens=12)
    made = client.chat.completions.create(
        model="nano", messages=[user(QUESTION, example("bill.png"))], max_tokens=12, temperature=0
    )
    assert made.choices[0].message.content == reply.text
    assert made.choices[0].finish_reason == reply.finish_reason
    assert made.usage is not None
    assert made.usage.prompt_tokens == reply.usage.prompt_tokens
    assert made.usage.completion_tokens == reply.usage.completion_tokens
    assert made.usage.prompt_tokens_details.visual_tokens == reply.usage.visual_tokens > 0


@pytest.mark.every_model
def test_a_conversation_of_several_turns_and_images_is_that_of_the_python_api(client: OpenAI, nano: VLM) -> None:
    session = nano.session(system="Answer in one word.")
    first = session.ask("How many blue stars are there?", images=[EXAMPLES / "scene.png"], max_new_tokens=6)
    second = session.ask("And here?", images=[EXAMPLES / "shapes.png", EXAMPLES / "bars.png"], max_new_tokens=6)
    messages = [
        {"role": "system", "content": "Answer in one word."},
        user("How many blue stars are there?", example("scene.png")),
        {"role": "assistant", "content": first.text},
        user("And here?", example("shapes.png"), example("bars.png")),
    ]
    made = client.chat.completions.create(model="nano", messages=messages, max_completion_tokens=6)
    assert made.choices[0].message.content == second.text


@pytest.mark.every_model
def test_a_stream_is_the_whole_answer_in_pieces(client: OpenAI, nano: VLM) -> None:
    reply = nano.chat("Describe.", images=[EXAMPLES / "shapes.png"], max_new_tokens=24)
    stream = client.chat.completions.create(
        model="nano",
        messages=[user("Describe.", example("shapes.png"))],
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == reply.text
    assert len([piece for piece in pieces if piece]) > 1
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == [reply.finish_reason]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_boxes_come_as_data_beside_the_tags(client: OpenAI, nano: VLM) -> None:
    question = "<|ref|>green house<|/ref|>."
    reply = nano.chat(question, images=[EXAMPLES / "scene.png"], max_new_tokens=48)
    assert reply.boxes, "the built-in model no longer gives a box here: choose another question"
    asked = {"model": "nano", "messages": [user(question, example("scene.png"))], "max_tokens": 48}
    message = client.chat.completions.create(**asked).choices[0].message
    assert "<|det|>" in (message.content or "")
    assert message.model_extra is not None
    assert message.model_extra["boxes"] == reply.to_dict()["boxes"]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[-1].choices[0].delta.model_extra["boxes"] == reply.to_dict()["boxes"]


@pytest.mark.every_model
def test_a_json_schema_is_held_to(client: OpenAI) -> None:
    schema = {
        "type": "object",
        # No number without a bound: a small model may write digits for ever.
        "properties": {"shop": {"type": "string", "maxLength": 12}, "copies": {"enum": [1, 2]}},
        "required": ["shop", "copies"],
        "additionalProperties": False,
    }
    made = client.chat.completions.create(
        model="nano",
        messages=[user("Read this receipt.", example("receipt.png"))],
        max_tokens=120,
        response_format={"type": "json_schema", "json_schema": {"name": "receipt", "schema": schema, "strict": True}},
    )
    value = json.loads(made.choices[0].message.content or "")
    assert set(value) == {"shop", "copies"}
    assert len(value["shop"]) <= 12
    assert value["copies"] in (1, 2)


@pytest.mark.every_model
def test_several_choices_are_drawn_from_seeds_of_their_own(client: OpenAI) -> None:
    asked = {
        "model": "nano",
        "messages": [user("Tell a story.")],
        "max_tokens": 12,
        "temperature": 1.5,
        "n": 3,
        "seed": 7,
    }
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.message.content for choice in again.choices] == texts
    assert len(set(texts)) == 3
    assert [choice.index for choice in first.choices] == [0, 1, 2]


@pytest.mark.every_model
def test_a_stop_text_ends_the_answer(client: OpenAI) -> None:
    asked = {"model": "nano", "messages": [user("Hello")], "max_tokens": 16}
    whole = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = whole[1:4]  # of whatever these weights answer
    assert stop
    made = client.chat.completions.create(**asked, stop=[stop]).choices[0]
    assert made.finish_reason == "stop"
    assert made.message.content == whole[: whole.index(stop)].strip()


@pytest.mark.every_model
def test_logprobs_tell_what_else_was_likely(client: OpenAI) -> None:
    made = client.chat.completions.create(
        model="nano", messages=[user("Hello")], max_tokens=4, logprobs=True, top_logprobs=3
    ).choices[0]
    assert made.logprobs is not None
    entries = made.logprobs.content or []
    assert "".join(entry.token for entry in entries).strip() == made.message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        # Greedy: the token taken is the likeliest.
        assert entry.top_logprobs[0].token == entry.token
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0


@pytest.mark.every_model
def test_responses_give_the_same_text(client: OpenAI, nano: VLM) -> None:
    reply = nano.chat(QUESTION, images=[EXAMPLES / "bill.png"], max_new_tokens=12)
    content = [
        {"type": "input_image", "image_url": example("bill.png")},
        {"type": "input_text", "text": QUESTION},
    ]
    asked = {"model": "nano", "input": [{"role": "user", "content": content}], "max_output_tokens": 12}
    made = client.responses.create(**asked)
    assert made.output_text == reply.text
    assert made.usage is not None
    assert made.usage.input_tokens == reply.usage.prompt_tokens
    events = list(client.responses.create(**asked, stream=True))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == reply.text
    assert events[0].type == "response.created"
    # A random model's answer goes on until it is cut off.
    assert events[-1].type == ("response.completed" if reply.finish_reason == "stop" else "response.incomplete")
    assert events[-1].response.output_text == reply.text
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.every_model
def test_responses_take_a_schema_and_instructions(client: OpenAI) -> None:
    made = client.responses.create(
        model="nano",
        instructions="You read receipts.",
        input="How much?",
        max_output_tokens=40,
        text={
            "format": {
                "type": "json_schema",
                "name": "amount",
                "schema": {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                           "additionalProperties": False},
            }
        },
    )  # fmt: skip
    assert set(json.loads(made.output_text)) == {"a"}


@pytest.mark.every_model
def test_completions_continue_a_raw_prompt(client: OpenAI, server: LiveServer) -> None:
    made = client.completions.create(model="nano", prompt=["The sky is", "Two and two"], max_tokens=5, logprobs=2)
    assert [choice.index for choice in made.choices] == [0, 1]
    assert made.usage is not None
    # Five each, or fewer where the model stops by itself.
    assert 2 <= made.usage.completion_tokens <= 10
    assert all(choice.finish_reason in ("length", "stop") for choice in made.choices)
    assert made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens
    first = made.choices[0]
    assert first.logprobs is not None
    assert "".join(first.logprobs.tokens or []) == first.text
    stream = client.completions.create(model="nano", prompt="The sky is", max_tokens=5, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == first.text
    asked = {"prompt": "The sky is", "max_tokens": 5, "logprobs": 0}
    told = [chunk.choices[0].logprobs for chunk in client.completions.create(model="nano", stream=True, **asked)]
    assert [place for part in told for place in part.text_offset] == first.logprobs.text_offset


@pytest.mark.every_model
def test_a_raw_prompt_is_continued_with_the_white_space_of_its_continuation(nano: VLM) -> None:
    pieces = (" Paris", ".\n")
    for strips, expected in ((True, "Paris."), (False, " Paris.\n")):
        text = AnswerText(sample=nano.processor.encode([user("x")]), processor=nano.processor, strips=strips)
        told = [text.add(Output(token_id=5, piece=piece, finish_reason=None)) for piece in pieces]
        assert "".join(told) == text.text == expected


def test_the_models_tell_what_they_take(client: OpenAI) -> None:
    (card,) = client.models.list().data
    assert card.id == "nano"
    assert card.model_extra is not None
    assert card.model_extra["modalities"]["input"] == ["text", "image"]
    assert card.model_extra["context_length"] == 4096
    assert card.model_extra["image_limits"]["max_tiles"] == 21
    assert client.models.retrieve("nano").id == "nano"


@pytest.mark.every_model
def test_errors_are_of_the_kinds_that_the_client_knows(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="the model 'gpt-5' is not served; there is nano"):
        client.chat.completions.create(model="gpt-5", messages=[user("Hello")])
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        client.chat.completions.create(model="nano", messages=[user("Hello")], temperature=-1)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="its base64 data is damaged"):
        client.chat.completions.create(model="nano", messages=[user("Hello", "data:image/png;base64,!!!")])
    with pytest.raises(openai.BadRequestError, match=r"maximum context length is (4096|8192|32768) tokens") as long:
        client.chat.completions.create(model="nano", messages=[user("word " * 40_000)])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools has no function"):
        client.chat.completions.create(
            model="nano",
            messages=[user("Hello")],
            tool_choice="required",
        )
