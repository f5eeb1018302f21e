import base64
from importlib.metadata import version

from _shared import API, PICTURE_DATA, scenario
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

print("llama-index-llms-openai-like", version("llama-index-llms-openai-like"))
llm = OpenAILike(
    model="nano",
    api_base=API,
    api_key="none",
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=6,
    context_window=4096,
    max_retries=0,
)
raw = OpenAILike(model="nano", api_base=API, api_key="none", is_chat_model=False, max_tokens=4, max_retries=0)
LOOK = [
    ChatMessage(role="system", content="Answer briefly."),
    ChatMessage(
        role="user",
        blocks=[
            TextBlock(text="What is this?"),
            ImageBlock(image=base64.b64decode(PICTURE_DATA), image_mimetype="image/png"),
        ],
    ),
]


def get_weather(city: str) -> str:
    """Tell the weather of a city."""
    return "22 degrees"


scenario("chat", lambda: llm.chat(LOOK))
scenario("a stream", lambda: [c.delta for c in llm.stream_chat(LOOK)])
scenario("complete", lambda: llm.complete("Hello"))
scenario("tools", lambda: llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg="Weather in Paris?"))
scenario("a raw completion", lambda: raw.complete("The sky is"))
