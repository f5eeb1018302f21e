"""A process that does benchmark tasks, seen from the side that gives them."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from vl2.bench.protocol import Answer, Task
from vl2.errors import UserError
from vl2.process_tuning import SPINS, VARIABLE

ADAPTERS = Path(__file__).parents[3] / "benchmarks" / "peers"
OURS = (sys.executable, "-m", "vl2.bench.ours")
LINES_SHOWN = 3
QUIT_TIMEOUT_S = 20.0


def adapters() -> dict[str, Path]:
    """Return the adapters of a checkout by name; without a checkout there are none."""
    return {path.stem.replace("_", "-"): path for path in sorted(ADAPTERS.glob("*.py"))}


def peer_command(text: str) -> list[str]:
    """Return the command of a peer: a name of `benchmarks/peers`, or a command line as it is."""
    known = adapters()
    if text in known:
        return [sys.executable, str(known[text])]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no command line: {error}") from None
    if len(words) < 2:
        named = ", ".join(known) or "none, outside of a checkout"
        raise UserError(f"no peer {text!r}: give a command line or one of the adapters ({named})")
    return words


class Target:
    """One running process. Use it as a context: it is told to quit, and ended if it does not."""

    def __init__(self, command: Sequence[str], *, threads: int | None) -> None:
        """Start the command. UserError if it cannot be started."""
        self.command = list(command)
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115, closed with the process
        environment = dict(os.environ)
        if tuple(command[: len(OURS)]) != OURS and environment.get(VARIABLE) == str(SPINS):
            del environment[VARIABLE]  # a setting of ours: a peer waits as it does by itself
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._log.close()
            raise UserError(f"{self.command[0]} cannot be started: {error.strerror}") from None
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, task: Task, *, timeout_s: float) -> Answer:
        """Give a task and return the answer. UserError where the process dies, says an error or takes too long."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(dict(task)) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except (BrokenPipeError, Empty) as error:
            if isinstance(error, Empty):
                raise UserError(f"{self._named} did not answer {task['do']} within {timeout_s:.0f} s") from None
            line = None
        if line is None:
            ended = _said_of(self._process.wait())
            raise UserError(f"{self._named} {ended} at {task['do']}: {self._last_lines()}")
        try:
            answer: Any = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{self._named} answered {task['do']} with no JSON object: {line[:100]!r}")
        if "error" in answer:
            raise UserError(f"{self._named} failed at {task['do']}: {answer['error']}")
        return answer

    def number(self, answer: Answer, key: str, task: Task) -> float:
        """Return what an answer says under a key. UserError unless it is a number above 0."""
        value = answer.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._misses(answer, f'"{key}", a number above 0', task)
        return value

    def text(self, answer: Answer, key: str, task: Task) -> str:
        """Return what an answer says under a key. UserError unless it is a text."""
        value = answer.get(key)
        if not isinstance(value, str) or not value:
            raise self._misses(answer, f'"{key}", a text', task)
        return value

    def close(self) -> None:
        """Let the process quit, end it if it does not, and forget its messages."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            try:
                self._process.stdin.write('{"do": "quit"}\n')
                self._process.stdin.close()
                self._process.wait(QUIT_TIMEOUT_S)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
        self._log.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _misses(self, answer: Answer, wanted: str, task: Task) -> UserError:
        return UserError(f"{self._named} must answer {task['do']} with {wanted}, got {json.dumps(answer)[:100]}")

    @property
    def _named(self) -> str:
        return f"`{shlex.join(self.command)}`"

    def _last_lines(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return " / ".join(lines[-LINES_SHOWN:]) or "it said nothing"


def _said_of(code: int) -> str:
    """Say how a process ended; POSIX gives the signal that ended it as a negative code."""
    if code >= 0:
        return f"ended with code {code}"
    if -code == getattr(signal, "SIGKILL", None):
        return "was killed, which the system does when memory runs out,"
    return f"was ended by {signal.Signals(-code).name}"
