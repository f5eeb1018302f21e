"""An MCP server: an agent's tools to read, extract, locate, describe and ask, by the official SDK (`mcp`).

Pictures and documents are files in allowed folders, http(s) URLs of pictures, or data URLs. Tools run one at a time,
off the server's event loop. What is wrong with a call is the tool's error, in one line, which agents show their model.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from vl2.errors import UserError
from vl2.files import is_url
from vl2.optional_imports import install_extra

if TYPE_CHECKING:
    from mcp.server.mcpserver import MCPServer

    from vl2.infer.vlm import VLM
    from vl2.process.grounding import Box

MAX_PICTURES = 8  # of one question
MAX_QUERIES = 32  # of one call to locate
MAX_TOKENS = 4096
INSTRUCTIONS = """Tools of a vision-language model on this machine. Pictures and PDF files are named by path, pictures
also by http(s) or data URL. Boxes are x0, y0, x1, y1 in pixels of the picture, from its upper left corner; a point is
the middle of a box, where one would click."""

T = TypeVar("T")
Picture = Annotated[str, Field(description="path, http(s) URL or data URL of a picture")]
File = Annotated[str, Field(description="path of a picture or PDF file, or URL of a picture")]
Pages = Annotated[str | None, Field(description='of a PDF file, only these pages: "3", "2-5" or "2-"')]


def make_server(load: Callable[[], VLM], folders: Sequence[Path]) -> MCPServer[Any]:
    """Return the server. Files are read from `folders` and below only. Raise UserError if the SDK is missing.

    The model is loaded in the background, since agents do not wait long for a server to start. An error of `load` is
    that of every tool.
    """
    try:
        from mcp.server.mcpserver import MCPServer
        from mcp.server.mcpserver.exceptions import ToolError
    except ImportError:
        raise UserError(f"the MCP server needs mcp 2: {install_extra('mcp')}") from None

    from vl2 import __version__

    tools = Tools(load, folders)
    threading.Thread(target=tools.prepare, daemon=True).start()
    server: MCPServer[Any] = MCPServer("vl2", instructions=INSTRUCTIONS, version=__version__)

    async def run(work: Callable[[], T]) -> T:
        import anyio.to_thread

        try:
            return await anyio.to_thread.run_sync(partial(tools.one_at_a_time, work))
        except UserError as error:
            raise ToolError(" ".join(str(error).split())) from None

    async def read(document: File, pages: Pages = None) -> dict[str, Any]:
        """Read the text of a picture or of the pages of a PDF file."""
        return await run(lambda: tools.read(document, pages))

    async def extract(
        document: File,
        json_schema: Annotated[dict[str, Any], Field(description="schema of one object; describe its properties")],
        pages: Pages = None,
    ) -> dict[str, Any]:
        """Fill a JSON schema from a document, and say where each value stands."""
        return await run(lambda: tools.extract(document, json_schema, pages))

    async def locate(
        image: Picture,
        queries: Annotated[list[str], Field(min_length=1, max_length=MAX_QUERIES, description="what to find")],
    ) -> dict[str, Any]:
        """Find things in a picture or on a screen: for each query its boxes and points, none if it is not there."""
        return await run(lambda: tools.locate(image, queries))

    async def describe(image: Picture) -> str:
        """Describe a picture."""
        return await run(lambda: tools.describe(image))

    async def ask(question: str, images: Annotated[list[Picture], Field(max_length=MAX_PICTURES)]) -> str:
        """Answer a question about pictures."""
        return await run(lambda: tools.ask(question, images))

    for tool in (read, extract, locate, describe, ask):
        server.add_tool(tool)
    return server


class Tools:
    """What the tools do, as plain calls. Raise UserError for whatever is wrong with their arguments."""

    def __init__(self, load: Callable[[], VLM], folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise UserError(f"--allow-files: {folder} is no folder")
        self._load, self._lock = load, threading.Lock()
        self._folders = [folder.resolve() for folder in folders]

    @cached_property
    def _vlm(self) -> VLM:
        return self._load()

    @property
    def _max_tokens(self) -> int:
        return min(MAX_TOKENS, self._vlm.limits.max_context)

    def prepare(self) -> None:
        """Load the model. A failure is left to the first call, which tries again."""
        with contextlib.suppress(UserError):
            self.one_at_a_time(lambda: self._vlm)

    def one_at_a_time(self, work: Callable[[], T]) -> T:
        with self._lock:
            return work()

    def read(self, document: str, pages: str | None) -> dict[str, Any]:
        from vl2.batch_job.file_items import page_range
        from vl2.infer.prompts import read_prompt

        found, prompt = [], read_prompt(self._vlm.processor.kind)
        for number, page in enumerate(self._document(document, pages).pages(), start=page_range(pages)[0]):
            reply = self._vlm.chat(prompt, [page.image], max_new_tokens=self._max_tokens, max_repeats=8)
            is_plain = self._vlm.processor.kind == "DeepSeek-VL2"
            found.append({
                "page": number,
                "text": reply.text if is_plain else reply.markdown,
                "is_whole": reply.finish_reason == "stop",
            })  # fmt: skip
        return {"pages": found}

    def extract(self, document: str, json_schema: dict[str, Any], pages: str | None) -> dict[str, Any]:
        from vl2.extract import extract

        (found,) = extract(self._vlm, [self._document(document, pages)], json_schema, max_new_tokens=self._max_tokens)
        if found.error is not None:
            raise UserError(found.error)
        line = found.to_dict()
        return {"value": line["value"], "places": line["places"]}

    def locate(self, image: str, queries: Sequence[str]) -> dict[str, Any]:
        picture = self._picture(image)
        replies = self._vlm.locate_all(queries, picture, constrained=True)
        found = {query: list(map(_box, reply.boxes)) for query, reply in zip(queries, replies, strict=True)}
        return {"size": list(picture.size), "found": found}

    def describe(self, image: str) -> str:
        return self._vlm.describe(self._picture(image), max_new_tokens=self._max_tokens, max_repeats=8).text

    def ask(self, question: str, images: Sequence[str]) -> str:
        if not question.strip():
            raise UserError("the question is empty: say what to ask")
        pictures = [self._picture(image) for image in images]
        return self._vlm.chat(question, pictures, max_new_tokens=self._max_tokens, max_repeats=8).text

    def _picture(self, named: str) -> Any:
        from vl2.process.image import open_image

        source = named if is_url(named) and not named.lower().startswith("file:") else self._allowed(named).as_posix()
        return open_image(source, self._vlm.processor.image_options)

    def _document(self, named: str, pages: str | None) -> Any:
        from vl2.batch_job.file_items import page_range
        from vl2.extract import Document, Page, file_documents

        if is_url(named):
            return Document(name="document", pages=lambda: [Page(image=self._picture(named))])
        first, last = page_range(pages)
        (document,) = file_documents([self._allowed(named).as_posix()], first=first, last=last)
        return document

    def _allowed(self, named: str) -> Path:
        """Return a file below an allowed folder. The message is the same for a file elsewhere and for none."""
        for folder in self._folders:
            try:
                path = (folder / named).resolve()
            except (OSError, ValueError, RuntimeError):  # for instance a NUL in the name, or a loop of links
                continue
            if path.is_relative_to(folder) and path.is_file():
                return path
        folders = ", ".join(map(str, self._folders)) or "none"
        raise UserError(f"no file {named} in the allowed folders ({folders})")


def _box(box: Box) -> dict[str, Any]:
    return {"box_px": [round(v, 1) for v in box.xyxy_px], "point_px": [round(v, 1) for v in box.center_px]}
