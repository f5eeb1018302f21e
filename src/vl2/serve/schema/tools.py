"""The fields `tools`, `tool_choice` and `parallel_tool_calls` of a request, in both of OpenAI's formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from vl2.errors import UserError
from vl2.process.tool_calls import MAX_TOOLS, Tool, ToolUse
from vl2.serve.api_errors import ApiError
from vl2.serve.ignored import IgnoredUnless
from vl2.serve.schema.base import Lenient, WithoutEffect


class FunctionSpec(Lenient):
    """A function that the model may call."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, Field(description="the JSON schema of the arguments, an object")] = (
        None
    )
    strict: WithoutEffect  # the schema is always enforced

    def tool(self) -> Tool:
        return Tool(name=self.name, description=self.description or "", parameters=self.parameters)


class ChatTool(Lenient):
    """A function in the format of chat completions."""

    type: Literal["function"]
    function: FunctionSpec

    def tool(self) -> Tool:
        return self.function.tool()


class FlatTool(FunctionSpec):
    """A function in the format of Responses."""

    type: Literal["function"]


class OtherTool(Lenient):
    """A tool of another kind, such as a search by the server. There is none here, so it is ignored and named."""

    model_config = ConfigDict(extra="ignore")
    type: Annotated[str, IgnoredUnless(lambda body, value: False)]

    def tool(self) -> Tool | None:
        return None


def _tag_of(tool: Any) -> str | None:
    kind = tool.get("type") if isinstance(tool, Mapping) else getattr(tool, "type", None)
    if not isinstance(kind, str):
        return None
    is_flat = isinstance(tool, FlatTool) or (isinstance(tool, Mapping) and "function" not in tool and "name" in tool)
    return "Other" if kind != "function" else "Flat" if is_flat else "Function"


AnyTool = Annotated[
    Annotated[ChatTool, Tag("Function")] | Annotated[FlatTool, Tag("Flat")] | Annotated[OtherTool, Tag("Other")],
    Discriminator(
        _tag_of,
        custom_error_type="unknown_tool",
        custom_error_message='a tool needs a type, such as "function"',
    ),
]
Tools = Annotated[list[AnyTool], Field(max_length=MAX_TOOLS)] | None


class FunctionName(Lenient):
    name: str


class NamedTool(Lenient):
    """A function that must be called, in either format."""

    type: Literal["function"]
    name: str | None = None
    function: FunctionName | None = None

    @property
    def called(self) -> str | None:
        return self.function.name if self.function else self.name


class AllowedTools(Lenient):
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool]


class AllowedToolsChoice(Lenient):
    """The functions of `tools` that may be called, in either format."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools | None = None
    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool] | None = None

    @property
    def allowed(self) -> AllowedTools:
        return self.allowed_tools or AllowedTools(mode=self.mode, tools=self.tools or [])


def _explain_choice(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        # One sentence covers all forms; pydantic's message would name only one.
        raise ValueError(
            'must be "none", "auto", "required", a function {"type": "function", ...}, or allowed_tools'
        ) from None


ToolChoice = Annotated[
    Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None, WrapValidator(_explain_choice)
]


def choice_of(choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None) -> Any:
    """Return a choice as JSON, in the format of Responses."""
    if isinstance(choice, NamedTool):
        return {"type": "function", "name": choice.called}
    if isinstance(choice, AllowedToolsChoice):
        named = [{"type": "function", "name": tool.called} for tool in choice.allowed.tools]
        return {"type": "allowed_tools", "mode": choice.allowed.mode, "tools": named}
    return choice or "auto"


def tool_use(
    tools: Sequence[ChatTool | FlatTool | OtherTool] | None,
    choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice | None,
    *,
    is_parallel: bool,
) -> ToolUse | None:
    """Return the functions that may be called, None if there are none. Raise ApiError if the choice is impossible."""
    if choice == "none":
        return None
    try:
        functions = [tool for given in tools or () if (tool := given.tool()) is not None]
    except UserError as error:
        raise ApiError(400, str(error), param="tools") from None
    is_required = choice == "required"
    names: list[str | None] | None = None
    if isinstance(choice, NamedTool):
        is_required, names = True, [choice.called]
    elif isinstance(choice, AllowedToolsChoice):
        is_required, names = choice.allowed.mode == "required", [tool.called for tool in choice.allowed.tools]
    if names is not None:
        known = {tool.name for tool in functions}
        if unknown := next((name for name in names if name not in known), None):
            raise ApiError(400, f"tool_choice: tools has no function {unknown!r}", param="tool_choice")
        functions = [tool for tool in functions if tool.name in names]
    if is_required and not functions:
        raise ApiError(400, "tool_choice asks for a call, but tools has no function to call", param="tool_choice")
    if not functions:
        return None
    try:
        return ToolUse(tools=tuple(functions), is_required=is_required, is_parallel=is_parallel)
    except UserError as error:
        raise ApiError(400, str(error), param="tools") from None
