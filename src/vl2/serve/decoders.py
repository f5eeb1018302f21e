"""Processes that decode pictures, which can be killed, and how much they may do at once.

A picture that takes too long or too much memory, or crashes its process, is refused; other pictures are not affected.
Canceling the wait for a picture, when its client has gone, kills the process: nothing else stops a decoder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeVar, cast

from PIL import Image

from vl2.errors import UserError
from vl2.infer.engine.engine import EngineStopped
from vl2.process.decode import ImageOptions, refuse
from vl2.process.decode_worker import read_frame, reading_bytes, write_frame
from vl2.process.pixels import CutImage, CutPlan, views_from_bytes
from vl2.process.tiling import Size
from vl2.serve.admission import FairSemaphore

T = TypeVar("T")

MAX_PROCESSES = 4
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from vl2.process.decode_worker import main; main()"
# Of libraries that the decoders import: one picture is work for one thread.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
# No keys for a decoder that a hostile picture has taken over.
_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class DecodeLimits:
    """What decoding may take."""

    memory_bytes: int  # of all pictures that are being decoded, and so of each
    cpu_s: float  # CPU time for one picture
    timeout_s: float  # wall-clock time: longer, since the machine may be busy

    @property
    def num_processes(self) -> int:
        count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
        return max(1, min(MAX_PROCESSES, count or 1))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture that is to be decoded, and a function that returns its bytes."""

    name: str  # for messages
    load: Callable[[], bytes]  # called in a thread, more than once


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What a picture's header says."""

    size: Size  # upright, unless the file states the orientation after the pixels
    decoding_bytes: int


@dataclass(frozen=True, kw_only=True)
class TiledPicture:
    """A picture cut into views."""

    size: Size  # upright
    views: CutImage
    whole: Image.Image | None


class Decoders:
    """Decodes pictures in processes that start when they are needed and stay."""

    def __init__(self, limits: DecodeLimits) -> None:
        self.limits = limits
        self.memory = FairSemaphore(limits.memory_bytes)
        self._places = FairSemaphore(limits.num_processes)
        # One thread waits for each process. There are some more, because a killed process may take a moment to end.
        self._threads = ThreadPoolExecutor(2 * limits.num_processes, thread_name_prefix="vl2-decode")
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._is_stopped = False

    async def start(self) -> None:
        """Have one process ready."""
        self._idle.append(await self._in_thread(self._start_process))

    def stop(self) -> None:
        """Kill all processes; waits for pictures end with an error."""
        self._is_stopped = True
        for process in list(self._all):
            process.kill()
        for process in self._idle:
            process.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Return which processes there are, some of them perhaps ending."""
        return tuple(process.pid for process in list(self._all))

    @property
    def num_waiting(self) -> int:
        return self.memory.num_waiting + self._places.num_waiting

    async def read_header(
        self, picture: Picture, options: ImageOptions, client: str, num_file_bytes: int
    ) -> PictureHeader:
        """Return what the header of a picture says. UserError for what is none, or exceeds a limit."""
        memory_bytes = reading_bytes(num_file_bytes)
        head, _ = await self._ask(picture, {"kind": "header"}, options, client, memory_bytes)
        header = PictureHeader(size=tuple(head["size"]), decoding_bytes=head["decoding_bytes"])
        if header.decoding_bytes > self.limits.memory_bytes:
            most, needed = self.limits.memory_bytes >> 20, header.decoding_bytes >> 20
            refuse(picture.name, f"decoding it takes up to {needed} MiB of memory, more than the limit of {most} MiB")
        return header

    async def decode_tiles(
        self,
        picture: Picture,
        header: PictureHeader,
        plan: CutPlan,
        *,
        color: tuple[int, int, int],
        has_whole: bool,
        options: ImageOptions,
        client: str,
    ) -> TiledPicture:
        """Return the views of a picture, with `has_whole` the picture too."""
        asked = {"kind": "tiles", "plan": asdict(plan), "color": color, "whole": has_whole}
        head, body = await self._ask(picture, asked, options, client, header.decoding_bytes)
        width, height = head["size"]
        num_bytes = 3 * plan.num_pixels
        assert len(body) == num_bytes + (width * height * 3 if has_whole else 0), "a picture came back in part"
        views = views_from_bytes(memoryview(body)[:num_bytes], plan)
        whole = Image.frombytes("RGB", (width, height), memoryview(body)[num_bytes:]) if has_whole else None
        return TiledPicture(size=(width, height), views=views, whole=whole)

    async def _ask(
        self, picture: Picture, asked: dict[str, Any], options: ImageOptions, client: str, memory_bytes: int
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request about a picture to a process. UserError if it refuses the picture or fails."""
        limits = self.limits
        head = {
            **asked,
            "name": picture.name,
            "options": vars(options),
            "memory_bytes": memory_bytes,
            "cpu_s": limits.cpu_s,
        }
        async with self.memory.hold(client, memory_bytes), self._process(client) as process:
            answer = self._in_thread(process.ask, head, picture.load)
            try:
                found = await asyncio.wait_for(asyncio.shield(answer), limits.timeout_s)
            except BaseException as error:
                if not answer.done():
                    process.kill()
                    answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it
                if isinstance(error, TimeoutError | asyncio.TimeoutError):
                    refuse(picture.name, f"it was not decoded within {limits.timeout_s:g} s")
                raise
        if found is None:
            if self._is_stopped:
                raise EngineStopped("the server stopped before the answer was complete")
            refuse(picture.name, f"decoding it takes more than {limits.cpu_s:g} s of the processor, or fails")
        if "refusal" in found[0]:
            raise UserError(found[0]["refusal"])
        return found

    @contextlib.asynccontextmanager
    async def _process(self, client: str) -> AsyncIterator[_Process]:
        """Hold a process for one request; it may be killed meanwhile."""
        async with self._places.hold(client):
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


class _Process:
    """One process. It belongs to one thread at a time; any may kill it."""

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
        """Return the answer to a request, or None if the process ended before it answered."""
        data = load()
        found = None
        with contextlib.suppress(OSError, ValueError):  # its end of the pipe is gone
            write_frame(self._stdin, head, data)
            del data
            found = read_frame(self._stdout)
        if found is None:
            self.close()
        return found

    def kill(self) -> None:
        """Kill the process. It is reaped when its answer is waited for, or when this object goes."""
        with self._lock:
            self._is_killed = True
            self._popen.kill()

    def close(self) -> None:
        """End the process and wait until it has."""
        self.kill()
        self._popen.wait()
        for pipe in (self._stdin, self._stdout):
            with contextlib.suppress(OSError):  # of what was not sent
                pipe.close()
