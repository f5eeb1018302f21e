import base64
from importlib.metadata import version

from _shared import API, PICTURE_DATA, scenario
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

print("pydantic-ai", version("pydantic-ai-slim"))
provider = OpenAIProvider(base_url=API, api_key="none")
chat = OpenAIChatModel("nano", provider=provider)
LOOK = ["What is this?", BinaryContent(base64.b64decode(PICTURE_DATA), media_type="image/png")]


class Shape(BaseModel):
    is_red: bool


def agent(model=chat, **fields):
    return Agent(
        model, instructions="Answer briefly.", model_settings={"max_tokens": fields.pop("max_tokens", 6)}, **fields
    )


def with_tool():
    made = agent()

    @made.tool_plain
    def get_weather(city: str) -> str:
        """Tell the weather of a city."""
        return "22 degrees"

    return made.run_sync("How is the weather in Paris?").output


scenario("run", lambda: agent().run_sync(LOOK).output)
scenario("a tool", with_tool)
scenario(
    "a native structured answer",
    lambda: agent(output_type=NativeOutput(Shape), max_tokens=40).run_sync("Is a cherry red?").output,
)
scenario(
    "responses", lambda: agent(OpenAIResponsesModel("nano", provider=provider), max_tokens=16).run_sync(LOOK).output
)
