"""A process that decodes pictures and pages of PDF files and tries grammars for a server, so that a malicious one can
harm only it.

It reads requests from its standard input and writes answers to its standard output, one after another. Each is a frame:
the length of a JSON object, the length of a body, the object and the body. Where the system supports it, the process
limits its own CPU time and memory for each picture. Elsewhere the server kills it. It imports no PyTorch, so it is
small and starts quickly.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import struct
import sys
import time
from typing import Any, BinaryIO

from PIL import Image

from vl2.errors import UserError
from vl2.process.decode import ImageOptions, decoding_bytes, load_rgb, open_header, upright_size
from vl2.process.pixels import draw_views, plan_from_json
from vl2.process_tuning import return_freed_memory

if sys.platform != "win32":
    import resource

_LENGTHS = struct.Struct(">IQ")
_HEADER_BYTES = 48 << 20  # for reading a header, in addition to twice the file: a TIFF may declare large tags
_SLACK_BYTES = 48 << 20  # address space without memory behind it: thread stacks, malloc's rounding


def reading_bytes(num_file_bytes: int) -> int:
    """Return the most memory, in bytes, that reading a picture's header takes."""
    return _HEADER_BYTES + 2 * num_file_bytes


def write_frame(stream: BinaryIO, head: dict[str, Any], *body: bytes | memoryview) -> None:
    """Write a frame. The body is the concatenation of the given pieces."""
    text = json.dumps(head).encode()
    stream.write(_LENGTHS.pack(len(text), sum(map(len, body))) + text)
    for piece in body:
        stream.write(piece)
    stream.flush()


def read_frame(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """Return the object and the body of the next frame, or None if the other side has closed the stream."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    num_head, num_body = _LENGTHS.unpack(lengths)
    head, body = stream.read(num_head), stream.read(num_body)
    if len(head) < num_head or len(body) < num_body:
        return None
    return json.loads(head), body


def main() -> None:
    """Answer requests until the standard input ends."""
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    # Redirect the standard streams, because anything that a decoder prints would be read as an answer.
    with open(os.devnull, "r+b") as nothing:
        for stream in (0, 1, 2):
            os.dup2(nothing.fileno(), stream)
    _give_way()
    Image.init()
    with contextlib.suppress(ImportError):
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the server already runs one decoder per core
    addresses = _num_addresses()
    while (frame := read_frame(requests)) is not None:
        head, data = frame
        began = time.process_time()
        num_bytes = head["memory_bytes"] + _SLACK_BYTES + _num_untouched(head, data)
        _limit(began + head["cpu_s"], addresses + num_bytes if addresses else None)
        try:
            answer, pieces = _answer(head, data)
        except UserError as refusal:
            answer, pieces = {"refusal": str(refusal)}, []
        except MemoryError:
            answer, pieces = {"refusal": f"cannot read image {head['name']}: there is not enough memory for it"}, []
        del frame, data
        _limit(None, None)
        with contextlib.suppress(BrokenPipeError):
            write_frame(answers, answer, *pieces)
        del pieces
        return_freed_memory()


def _answer(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    if head["kind"] == "pdf":
        return _answer_pdf(head, data)
    if head["kind"] == "grammars":
        return _answer_grammars(data), []
    name, options = head["name"], ImageOptions(**head["options"])
    image = open_header(data, name, options)
    if head["kind"] == "header":
        return {"size": upright_size(image, options), "decoding_bytes": decoding_bytes(image, len(data))}, []
    rgb = load_rgb(image, name, options)
    del image
    plan = plan_from_json(head["plan"])
    color = tuple(head["color"])
    views = [view for canvases in (plan.overviews, plan.tiles) for view in draw_views(rgb, canvases, color)]
    whole = [rgb.tobytes()] if head["whole"] else []
    return {"size": rgb.size}, [*(view.tobytes() for view in views), *whole]


def _answer_pdf(head: dict[str, Any], data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    # pypdfium2 is an optional package, and only few servers draw pages.
    from vl2.process.pdf import encode_pages, options_from_json

    num_pages, encoded = encode_pages(data, options_from_json(head["pdf"]))
    pages = [{"page": page.page, "size": page.size, "num_bytes": len(page.data)} for page in encoded]
    return {"num_pages": num_pages, "pages": pages}, [page.data for page in encoded]


def _answer_grammars(data: bytes) -> dict[str, Any]:
    """Compile grammars until one has an error. A vocabulary of bytes takes the time and memory that any other takes."""
    # llguidance is an optional package, and only few requests have a schema.
    from llguidance import LLMatcher, LLTokenizer

    tokenizer = LLTokenizer("byte")
    errors = (LLMatcher(tokenizer, grammar, log_level=0).get_error() for grammar in json.loads(data))
    return {"wrong": next(([index, error] for index, error in enumerate(errors) if error), None)}


def _num_untouched(head: dict[str, Any], data: bytes) -> int:
    """Return how many bytes a decoder reserves on opening without using them yet: a WebP's two frames, otherwise 0."""
    return 8 * int(head["options"]["max_pixels"]) if head["kind"] == "header" and data[8:12] == b"WEBP" else 0


def _give_way() -> None:
    """Make this process the first to be killed when memory runs out, and ignore signals meant for the server."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "win32":
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _num_addresses() -> int:
    """Return the size of this process's address space in bytes, or 0 if it is not known and cannot be limited."""
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _limit(cpu_s: float | None, addresses: int | None) -> None:
    """Limit the total CPU time (seconds) and the address space (bytes) of this process. None lifts a limit."""
    if sys.platform == "win32":
        return
    for kind, value in ((resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_AS, addresses)):
        _, hard = resource.getrlimit(kind)
        soft = hard if value is None else math.ceil(value)
        if hard != resource.RLIM_INFINITY:
            soft = hard if soft == resource.RLIM_INFINITY else min(soft, hard)
        # The system ends a process that exceeds the soft limit of CPU time.
        resource.setrlimit(kind, (soft, hard))
