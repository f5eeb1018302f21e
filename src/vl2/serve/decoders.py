"""Decode images, draw pages of PDF files and try grammars in subprocesses with limits on time and memory.

All of these come from untrusted clients. An image that takes too long or too much memory, or that crashes its process,
is refused, and other images are not affected. If the client disconnects, the wait for its image is canceled, which
kills the process, because a running decoder cannot be stopped in another way. The same holds for the grammar of a JSON
schema: 800 bytes can take over a minute to compile, and usual ones take some milliseconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from PIL import Image

from vl2.errors import UserError
from vl2.infer.engine.engine import EngineStopped
from vl2.process.decode import ImageOptions, refuse
from vl2.process.decode_worker import read_frame, reading_bytes, write_frame
from vl2.process.pdf import EncodedPage, PagesOptions
from vl2.process.pixels import CutImage, CutPlan, views_from_bytes
from vl2.process.tiling import Size
from vl2.serve.admission import FairSemaphore

T = TypeVar("T")

MAX_PROCESSES = 4
PDF_BYTES = 640 << 20  # memory for drawing pages: one of 40 million pixels takes half of it, the pictures on it more
GRAMMAR_BYTES = 64 << 20  # memory for compiling the grammars of a request
GRAMMAR_S = 1.0  # CPU time for the same
GRAMMAR_TIMEOUT_S = 30.0  # wall-clock time for the same, because the machine may be busy
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from vl2.process.decode_worker import main; main()"
# Settings of libraries that a decoder imports: decoding one image uses one thread.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
# Environment variables that are not passed to a decoder, in case a hostile image takes it over.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """Limits on decoding."""

    memory_bytes: int  # for all images that are decoded at once, and so for each
    cpu_s: float  # CPU time for one image
    timeout_s: float  # wall-clock time for one image; longer than cpu_s, because the machine may be busy

    @property
    def num_processes(self) -> int:
        count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        return max(1, min(MAX_PROCESSES, count or 1))


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An encoded image, with a function that returns its bytes."""

    name: str  # for error messages
    load: Callable[[], bytes]  # called in a thread, and more than once


@dataclass(frozen=True, kw_only=True)
class ImageHeader:
    """The properties of an image that its header tells."""

    size: Size  # upright, unless the file stores the orientation after the pixels
    decoding_bytes: int  # upper bound of the memory for decoding


@dataclass(frozen=True, kw_only=True)
class TiledImage:
    """The views of a decoded image."""

    size: Size  # upright
    views: CutImage
    whole: Image.Image | None


class Decoders:
    """A pool of decoder processes, which are started when needed and then reused."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self.memory = FairSemaphore(limits.memory_bytes)
        self._process_slots = FairSemaphore(limits.num_processes)
        # A thread waits for each process. There are twice as many, because a killed process may take a moment to end.
        self._threads = ThreadPoolExecutor(2 * limits.num_processes, thread_name_prefix="vl2-decode")
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._is_stopped = False

    async def start(self) -> None:
        """Start one process in advance."""
        self._idle.append(await self._in_thread(self._start_process))

    def stop(self) -> None:
        """Kill all processes. Calls that wait for an image raise EngineStopped."""
        self._is_stopped = True
        for process in list(self._all):
            process.kill()
        for process in self._idle:
            process.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Return the ids of all processes, including those that are ending."""
        return tuple(process.pid for process in list(self._all))

    @property
    def num_waiting(self) -> int:
        return self.memory.num_waiting + self._process_slots.num_waiting

    async def read_header(
        self, image: EncodedImage, options: ImageOptions, client: str, num_file_bytes: int
    ) -> ImageHeader:
        """Read the header of an image. Raise UserError if it is not an image or exceeds a limit."""
        memory_bytes = reading_bytes(num_file_bytes)
        head, _ = await self._request(image, {"kind": "header"}, options, client, memory_bytes)
        header = ImageHeader(size=tuple(head["size"]), decoding_bytes=head["decoding_bytes"])
        if header.decoding_bytes > self.limits.memory_bytes:
            most, needed = self.limits.memory_bytes >> 20, header.decoding_bytes >> 20
            refuse(image.name, f"decoding it takes up to {needed} MiB of memory, more than the limit of {most} MiB")
        return header

    async def decode_tiles(
        self,
        image: EncodedImage,
        header: ImageHeader,
        plan: CutPlan,
        *,
        color: tuple[int, int, int],
        has_whole: bool,
        options: ImageOptions,
        client: str,
    ) -> TiledImage:
        """Decode an image and return its views, and with `has_whole` also the image."""
        task = {"kind": "tiles", "plan": asdict(plan), "color": color, "whole": has_whole}
        head, body = await self._request(image, task, options, client, header.decoding_bytes)
        width, height = head["size"]
        num_bytes = 3 * plan.num_pixels
        assert len(body) == num_bytes + (width * height * 3 if has_whole else 0), (
            "a decoder returned an incomplete image"
        )
        views = views_from_bytes(memoryview(body)[:num_bytes], plan)
        whole = Image.frombytes("RGB", (width, height), memoryview(body)[num_bytes:]) if has_whole else None
        return TiledImage(size=(width, height), views=views, whole=whole)

    async def draw_pages(self, file: EncodedImage, options: PagesOptions, client: str) -> tuple[int, list[EncodedPage]]:
        """Return the number of pages of a PDF file, and those that `encode_pages` draws within its limits."""
        memory_bytes = min(self.limits.memory_bytes, PDF_BYTES)
        head, body = await self._request(file, {"kind": "pdf", "pdf": options.to_dict()}, None, client, memory_bytes)
        pages, start = [], 0
        for told in head["pages"]:
            end = start + told["num_bytes"]
            pages.append(EncodedPage(page=told["page"], size=tuple(told["size"]), data=body[start:end]))
            start = end
        return head["num_pages"], pages

    async def try_grammars(self, grammars: Sequence[str], client: str) -> tuple[int, str] | None:
        """Compile grammars of llguidance. Raise UserError if that takes too much time or memory.

        Return the index of the first with an error and the error, or None if all are fine.
        """
        text = EncodedImage(name="the JSON schema", load=json.dumps(grammars).encode)
        limits = replace(self.limits, cpu_s=GRAMMAR_S, timeout_s=min(GRAMMAR_TIMEOUT_S, self.limits.timeout_s))
        memory_bytes = min(self.limits.memory_bytes, GRAMMAR_BYTES)
        head, _ = await self._request(text, {"kind": "grammars"}, None, client, memory_bytes, limits)
        return None if head["wrong"] is None else tuple(head["wrong"])

    async def _request(
        self,
        image: EncodedImage,
        task: dict[str, Any],
        options: ImageOptions | None,
        client: str,
        memory_bytes: int,
        limits: DecodeLimits | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Let a process do a task with an image. Raise UserError if it refuses the image or fails."""
        limits = limits or self.limits
        head = {
            **task,
            "name": image.name,
            "options": None if options is None else vars(options),
            "memory_bytes": memory_bytes,
            "cpu_s": limits.cpu_s,
        }
        async with self.memory.hold(client, memory_bytes), self._process(client) as process:
            answer = self._in_thread(process.ask, head, image.load)
            try:
                found = await asyncio.wait_for(asyncio.shield(answer), limits.timeout_s)
            except BaseException as error:
                if not answer.done():
                    process.kill()
                    # Nobody awaits this future any more, so its exception must be retrieved here.
                    answer.add_done_callback(lambda done: done.cancelled() or done.exception())
                if isinstance(error, TimeoutError | asyncio.TimeoutError):
                    _refuse(image, task, f"took longer than {limits.timeout_s:g} s")
                raise
        if found is None:
            if self._is_stopped:
                raise EngineStopped("the server stopped before the answer was complete")
            _refuse(image, task, f"takes more than {limits.cpu_s:g} s of the processor, or fails")
        if "refusal" in found[0]:
            raise UserError(found[0]["refusal"])
        return found

    @contextlib.asynccontextmanager
    async def _process(self, client: str) -> AsyncIterator[_Process]:
        """Hold a process for one task, during which it may be killed."""
        async with self._process_slots.hold(client):
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    break
                self._all.discard(process)
            else:
                process = await self._in_thread(self._start_process)
            try:
                yield process
            finally:
                if process.is_alive:
                    self._idle.append(process)
                else:
                    self._all.discard(process)

    def _in_thread(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        if self._is_stopped:
            raise EngineStopped("the server is stopping")
        return asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _start_process(self) -> _Process:
        process = _Process()
        self._all.add(process)
        if self._is_stopped:
            process.kill()
        return process


def _refuse(image: EncodedImage, task: dict[str, Any], why: str) -> NoReturn:
    if task["kind"] == "grammars":
        raise UserError(f"{image.name} cannot be followed: compiling it {why}")
    if task["kind"] == "pdf":
        raise UserError(f"cannot draw pages of {image.name}: decoding it {why}")
    refuse(image.name, f"decoding it {why}")


class _Process:
    """A decoder process. One thread at a time uses it, and any thread may kill it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not _SECRET.search(name)} | _ENVIRONMENT,
        )
        self._stdin, self._stdout = cast("BinaryIO", self._popen.stdin), cast("BinaryIO", self._popen.stdout)
        self._is_killed = False

    @property
    def is_alive(self) -> bool:
        return not self._is_killed and self._popen.poll() is None

    @property
    def pid(self) -> int:
        return self._popen.pid

    def ask(self, head: dict[str, Any], load: Callable[[], bytes]) -> tuple[dict[str, Any], bytes] | None:
        """Send a task with an image and return the answer, or None if the process ends before it answers."""
        data = load()
        found = None
        with contextlib.suppress(OSError, ValueError):  # raised if the process has closed its end of the pipe
            write_frame(self._stdin, head, data)
            del data
            found = read_frame(self._stdout)
        if found is None:
            self.close()
        return found

    def kill(self) -> None:
        """Kill the process. It is reaped by `ask`, which waits for its answer, or when this object is deleted."""
        with self._lock:
            self._is_killed = True
            self._popen.kill()

    def close(self) -> None:
        """Kill the process and wait for its end."""
        self.kill()
        self._popen.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # closing flushes unsent data into a broken pipe
                pipe.close()
