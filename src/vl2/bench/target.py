"""Start a benchmark target as a process and send it tasks. The other side is `vl2.bench.protocol`."""

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
NUM_LOG_LINES = 3
QUIT_TIMEOUT_S = 20.0


def adapters() -> dict[str, Path]:
    """Return the adapters in benchmarks/peers by name. Outside a checkout there are none."""
    return {path.stem.replace("_", "-"): path for path in sorted(ADAPTERS.glob("*.py"))}


def peer_command(text: str) -> list[str]:
    """Return a peer's command from the name of an adapter or from a command line. Raise UserError if it is neither."""
    known = adapters()
    if text in known:
        return [sys.executable, str(known[text])]
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"{text!r} is no command line: {error}") from None
    if len(words) < 2:
        named = ", ".join(known) or "none outside a checkout"
        raise UserError(f"no peer {text!r}: give a command line or one of the adapters ({named})")
    return words


class Target:
    """A running target. Use it as a context manager, which ends the process."""

    def __init__(self, command: Sequence[str], *, threads: int | None) -> None:
        """Start the command. Raise UserError if that fails."""
        self.command = list(command)
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115, closed with the process
        environment = dict(os.environ)
        if tuple(command[: len(OURS)]) != OURS and environment.get(VARIABLE) == str(SPINS):
            del environment[VARIABLE]  # set by this process for itself; a peer must run with its own default
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
        """Send a task and return the answer. Raise UserError if the process dies, fails or takes too long."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(dict(task)) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=timeout_s)
        except (BrokenPipeError, Empty) as error:
            if isinstance(error, Empty):
                raise UserError(f"{self._shown_command} did not answer {task['do']} within {timeout_s:.0f} s") from None
            line = None
        if line is None:
            ended = _describe_exit(self._process.wait())
            raise UserError(f"{self._shown_command} {ended} at {task['do']}: {self._last_lines()}")
        try:
            answer: Any = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{self._shown_command} answered {task['do']} without a JSON object: {line[:100]!r}")
        if "error" in answer:
            raise UserError(f"{self._shown_command} failed at {task['do']}: {answer['error']}")
        return answer

    def number(self, answer: Answer, key: str, task: Task) -> float:
        """Return the number under a key of an answer. Raise UserError unless it is above 0."""
        value = answer.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._wrong_answer(answer, f'"{key}", a number above 0', task)
        return value

    def text(self, answer: Answer, key: str, task: Task) -> str:
        """Return the text under a key of an answer. Raise UserError if there is none."""
        value = answer.get(key)
        if not isinstance(value, str) or not value:
            raise self._wrong_answer(answer, f'"{key}", a text', task)
        return value

    def close(self) -> None:
        """Ask the process to quit, and kill it if it does not within QUIT_TIMEOUT_S."""
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

    def _wrong_answer(self, answer: Answer, wanted: str, task: Task) -> UserError:
        return UserError(
            f"{self._shown_command} must answer {task['do']} with {wanted}, got {json.dumps(answer)[:100]}"
        )

    @property
    def _shown_command(self) -> str:
        return f"`{shlex.join(self.command)}`"

    def _last_lines(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return " / ".join(lines[-NUM_LOG_LINES:]) or "it printed nothing"


def _describe_exit(code: int) -> str:
    """Describe how a process ended. On POSIX a negative code is the number of the signal that ended it."""
    if code >= 0:
        return f"ended with code {code}"
    if -code == getattr(signal, "SIGKILL", None):
        return "was killed, which the system does when memory runs out,"
    return f"was ended by {signal.Signals(-code).name}"
