import openai
from _shared import PICTURE, TOOL, scenario
from openai import OpenAI
from pydantic import BaseModel

print("openai-python", openai.__version__)
client = OpenAI(max_retries=0)
LOOK = [
    {"role": "developer", "content": "Answer briefly."},
    {
        "role": "user",
        "name": "ann",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}},
        ],
    },
]
CALLED = [
    {"role": "user", "content": "How is the weather in Paris?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "22 degrees"},
]


class Shape(BaseModel):
    is_red: bool


def chat(**fields):
    return client.chat.completions.create(model="nano", max_completion_tokens=6, **fields).choices[0].message.content


def stream(**fields):
    chunks = client.chat.completions.create(
        model="nano", max_tokens=6, stream=True, stream_options={"include_usage": True}, **fields
    )
    return "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)


scenario("a picture", lambda: chat(messages=LOOK, temperature=0.2, top_p=0.9, seed=1, user="ann"))
scenario("a stream", lambda: stream(messages=LOOK, presence_penalty=0.1, frequency_penalty=0.1))
scenario("tools", lambda: chat(messages=LOOK, tools=[TOOL], tool_choice="auto", parallel_tool_calls=False))
scenario("a history with tools", lambda: chat(messages=CALLED, tools=[TOOL]))
scenario(
    "what reasoning models take",
    lambda: chat(
        messages=LOOK,
        reasoning_effort="low",
        verbosity="low",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        logit_bias={"5": -100},
        modalities=["text"],
        prediction={"type": "content", "content": "A circle."},
        web_search_options={},
        prompt_cache_key="k",
        safety_identifier="s",
    ),
)
scenario(
    "a parsed answer",
    lambda: (
        client.chat.completions.parse(model="nano", messages=LOOK, response_format=Shape, max_tokens=40)
        .choices[0]
        .message.parsed
    ),
)
scenario("logprobs of two answers", lambda: chat(messages=LOOK, n=2, logprobs=True, top_logprobs=2, temperature=1))
scenario(
    "responses",
    lambda: (
        client.responses.create(
            model="nano",
            instructions="Answer briefly.",
            max_output_tokens=6,
            store=False,
            truncation="auto",
            include=["reasoning.encrypted_content"],
            reasoning={"effort": "low"},
            text={"verbosity": "low"},
            input=[
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is this?"},
                        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
                    ],
                }
            ],
            tools=[
                {
                    "type": "function",
                    "name": "get_weather",
                    "parameters": TOOL["function"]["parameters"],
                    "strict": True,
                }
            ],
        ).output_text
    ),
)
scenario(
    "responses with what was called",
    lambda: (
        client.responses.create(
            model="nano",
            max_output_tokens=6,
            input=[
                {"role": "user", "content": "How is the weather in Paris?"},
                {
                    "type": "function_call",
                    "call_id": "c",
                    "name": "get_weather",
                    "arguments": '{"city": "Paris"}',
                    "id": "fc_1",
                    "status": "completed",
                },
                {"type": "function_call_output", "call_id": "c", "output": "22 degrees"},
            ],
        ).output_text
    ),
)


def streamed_response():
    with client.responses.stream(model="nano", input="Hello", max_output_tokens=6) as events:
        return [event.type for event in events][-1]


scenario("a streamed response", streamed_response)
scenario(
    "a parsed response",
    lambda: (
        client.responses.parse(
            model="nano", input="Is a cherry red?", text_format=Shape, max_output_tokens=40
        ).output_parsed
    ),
)
scenario(
    "a raw prompt",
    lambda: (
        client.completions.create(model="nano", prompt="The sky is", max_tokens=4, best_of=1, echo=False, logprobs=1)
        .choices[0]
        .text
    ),
)
scenario(
    "a raw prompt of token ids",
    lambda: client.completions.create(model="nano", prompt=[[0, 42, 657, 81]], max_tokens=4).choices[0].text,
)
