from importlib.metadata import version

import litellm
from _shared import API, PICTURE, TOOL, scenario

print("litellm", version("litellm"))
litellm.telemetry = False
LOOK = [
    {
        "role": "system",
        "content": [{"type": "text", "text": "Answer briefly.", "cache_control": {"type": "ephemeral"}}],
    },
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PICTURE}}],
    },
]


def ask(provider="openai", **fields):
    fields = {"messages": LOOK, **fields}
    return litellm.completion(
        model=f"{provider}/nano", api_base=API, api_key="none", max_tokens=6, num_retries=0, **fields
    )


def text(made):
    return made.choices[0].message.content


def pieces(made):
    return "".join(c.choices[0].delta.content or "" for c in made)


scenario("openai", lambda: text(ask()))
scenario("openai, a stream", lambda: pieces(ask(stream=True, stream_options={"include_usage": True})))
scenario(
    "hosted_vllm",
    lambda: text(
        ask(
            "hosted_vllm",
            extra_body={
                "chat_template_kwargs": {"enable_thinking": False},
                "skip_special_tokens": False,
                "min_tokens": 0,
            },
        )
    ),
)
scenario("hosted_vllm, tools in a stream", lambda: pieces(ask("hosted_vllm", tools=[TOOL], stream=True)))
scenario("lm_studio", lambda: text(ask("lm_studio", tools=[TOOL], tool_choice="none")))
scenario(
    "a history with tools",
    lambda: text(
        ask(
            messages=[
                {"role": "user", "content": "How is the weather in Paris?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "call_1",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": "22 degrees"},
            ],
            tools=[TOOL],
        )
    ),
)
scenario(
    "text_completion",
    lambda: (
        litellm.text_completion(
            model="text-completion-openai/nano", api_base=API, api_key="none", prompt="The sky is", max_tokens=4
        )
        .choices[0]
        .text
    ),
)
scenario(
    "responses",
    lambda: (
        litellm.responses(model="openai/nano", api_base=API, api_key="none", input="Hello", max_output_tokens=6)
        .output[0]
        .content[0]
        .text
    ),
)
