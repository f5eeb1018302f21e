from importlib.metadata import version

from _shared import API, PICTURE, PICTURE_DATA, scenario
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

print("langchain-openai", version("langchain-openai"))
LOOK = [
    SystemMessage("Answer briefly."),
    HumanMessage([{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": PICTURE}}]),
]
STANDARD = HumanMessage(
    [{"type": "text", "text": "What is this?"}, {"type": "image", "base64": PICTURE_DATA, "mime_type": "image/png"}]
)


@tool
def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return "22 degrees"


class Shape(BaseModel):
    """What is seen."""

    is_red: bool


def model(**fields):
    return ChatOpenAI(
        model="nano", base_url=API, api_key="none", max_tokens=fields.pop("max_tokens", 6), max_retries=0, **fields
    )


scenario("invoke", lambda: model(temperature=0).invoke(LOOK).content)
scenario("a standard block", lambda: model().invoke([STANDARD]).content)
scenario("a stream", lambda: "".join(str(c.content) for c in model(stream_usage=True).stream(LOOK)))
scenario("bound tools", lambda: model().bind_tools([get_weather]).invoke("How is the weather in Paris?").content)
scenario(
    "a history with tools",
    lambda: (
        model()
        .bind_tools([get_weather])
        .invoke(
            [
                HumanMessage("How is the weather in Paris?"),
                AIMessage("", tool_calls=[{"name": "get_weather", "args": {"city": "Paris"}, "id": "call_1"}]),
                ToolMessage("22 degrees", tool_call_id="call_1"),
            ]
        )
        .content
    ),
)
scenario("a greeting first", lambda: model().invoke([AIMessage("Hello! Ask me."), HumanMessage("Hi")]).content)
scenario(
    "a structured answer",
    lambda: model(max_tokens=40).with_structured_output(Shape, method="json_schema").invoke("Is a cherry red?"),
)
scenario("the responses api", lambda: model(use_responses_api=True).invoke(LOOK).content)
scenario("a completion", lambda: OpenAI(model="nano", base_url=API, api_key="none", max_tokens=6).invoke("The sky is"))
