from importlib.metadata import version

from _shared import API, PICTURE, scenario
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

print("openai-agents", version("openai-agents"))
set_tracing_disabled(True)
client = AsyncOpenAI(base_url=API, api_key="none", max_retries=0)
LOOK = [
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "What is this?"},
            {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
        ],
    }
]


@function_tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return "22 degrees"


def run(kind):
    agent = Agent(
        name="Seer",
        instructions="Answer briefly.",
        model=kind(model="nano", openai_client=client),
        tools=[get_weather],
        model_settings=ModelSettings(max_tokens=16),
    )
    return Runner.run_sync(agent, LOOK).final_output


scenario("chat completions", lambda: run(OpenAIChatCompletionsModel))
scenario("responses", lambda: run(OpenAIResponsesModel))
