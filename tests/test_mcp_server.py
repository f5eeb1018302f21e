"""`vl2 mcp` through the official client: the tools answer, files elsewhere stay closed, errors are one line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import vl2
from vl2.errors import UserError
from vl2.infer.vlm import VLM

pytest.importorskip("mcp.server.mcpserver", reason="the extra mcp (version 2 of the SDK) is not installed")
mcp = pytest.importorskip("mcp")

from vl2.mcp_server import make_server  # noqa: E402

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def nano() -> VLM:
    return vl2.load("nano")


def call(vlm: VLM, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with a client of a server that may read the examples."""

    async def run() -> Any:
        async with mcp.Client(make_server(lambda: vlm, [EXAMPLES])) as client:
            return await work(client)

    return asyncio.run(run())


def text_of(result: Any) -> str:
    return "".join(part.text for part in result.content)


def test_tools_are_listed_with_their_arguments(nano: VLM) -> None:
    tools = {tool.name: tool for tool in call(nano, lambda client: client.list_tools()).tools}
    assert set(tools) == {"read", "extract", "locate", "describe", "ask"}
    assert all(tool.description for tool in tools.values())
    assert set(tools["locate"].input_schema["required"]) == {"image", "queries"}


def test_a_page_is_read(nano: VLM) -> None:
    result = call(nano, lambda client: client.call_tool("read", {"document": "word.png"}))
    assert not result.is_error
    (page,) = result.structured_content["pages"]
    said = nano.chat("Transcribe the whole page.", [str(EXAMPLES / "word.png")], max_repeats=8)
    assert page == {"page": 1, "text": said.text, "is_whole": True}


def test_several_things_are_located_in_one_call(nano: VLM) -> None:
    arguments = {"image": "scene.png", "queries": ["green house", "red circle"]}
    result = call(nano, lambda client: client.call_tool("locate", arguments))
    found = result.structured_content["found"]
    assert list(found) == ["green house", "red circle"]
    (box,) = nano.locate("green house", str(EXAMPLES / "scene.png"), constrained=True)
    x0, y0, x1, y1 = box.xyxy_px
    assert found["green house"][0]["box_px"] == pytest.approx([x0, y0, x1, y1], abs=0.06)
    assert found["green house"][0]["point_px"] == pytest.approx([(x0 + x1) / 2, (y0 + y1) / 2], abs=0.06)


def test_an_object_is_extracted(nano: VLM) -> None:
    schema = {"type": "object", "properties": {"n": {"enum": [3, 12]}}, "required": ["n"]}
    arguments = {"document": "word.png", "json_schema": schema}
    result = call(nano, lambda client: client.call_tool("extract", arguments))
    assert result.structured_content["value"]["n"] in (3, 12)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("describe", {"image": "../pyproject.toml"}, "allowed folders"),
        ("describe", {"image": "/etc/passwd"}, "allowed folders"),
        ("describe", {"image": "missing.png"}, "allowed folders"),
        ("describe", {"image": "a\0b"}, "allowed folders"),
        ("describe", {"image": "file:///etc/passwd"}, "allowed folders"),
        ("describe", {"image": "http://127.0.0.1:1/a.png"}, "127.0.0.1"),
        ("describe", {"image": "several.toml"}, "picture"),
        ("ask", {"question": " ", "images": []}, "question is empty"),
        ("read", {"document": "word.png", "pages": "x"}, "pages must be"),
        ("extract", {"document": "word.png", "json_schema": {"type": "array"}}, "object"),
        ("locate", {"image": "scene.png", "queries": []}, "queries"),
        ("locate", {"image": "scene.png", "queries": ["x"] * 33}, "queries"),
    ],
)
def test_what_is_wrong_is_the_tools_error(nano: VLM, tool: str, arguments: dict[str, Any], message: str) -> None:
    result = call(nano, lambda client: client.call_tool(tool, arguments))
    assert result.is_error
    assert message in text_of(result)


def test_a_folder_must_exist(nano: VLM) -> None:
    with pytest.raises(UserError, match="no folder"):
        make_server(lambda: nano, [EXAMPLES / "missing"])


def test_an_agent_starts_the_command_and_calls_a_tool() -> None:
    command = mcp.StdioServerParameters(
        command=sys.executable, args=["-m", "vl2", "mcp", "--allow-files", str(EXAMPLES)], env=dict(os.environ)
    )

    async def run() -> Any:
        async with mcp.Client(command, read_timeout_seconds=300) as client:
            return await client.call_tool(
                "ask", {"question": "What is the text in the picture?", "images": ["word.png"]}
            )

    result = asyncio.run(run())
    assert not result.is_error, text_of(result)
    assert json.dumps(text_of(result))
