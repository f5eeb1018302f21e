from importlib.metadata import version

import instructor
from _shared import API, scenario
from openai import OpenAI
from pydantic import BaseModel, ConfigDict

print("instructor", version("instructor"))


class Shape(BaseModel):
    model_config = ConfigDict(extra="forbid")
    is_red: bool


def ask(mode):
    client = instructor.from_openai(OpenAI(base_url=API, api_key="none", max_retries=0), mode=mode)
    return client.chat.completions.create(
        model="nano",
        response_model=Shape,
        max_retries=0,
        max_tokens=200,
        messages=[{"role": "user", "content": "Is a cherry red?"}],
    )


scenario("json_schema", lambda: ask(instructor.Mode.JSON_SCHEMA))
# The built-in model writes no object by itself: the request is what counts here.
scenario("json", lambda: ask(instructor.Mode.JSON))
