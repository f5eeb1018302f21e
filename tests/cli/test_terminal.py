"""The program as a process: pipes that close, Ctrl-C, and a conversation typed into a terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..reference import CHECKPOINTS, IMAGES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and terminals")

SMALL = str(CHECKPOINTS / "small")
PHOTO = IMAGES / "small50x37.png"
# As started by a person: what a shell starts in the background has Ctrl-C ignored, and so have its children.
HEEDS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
PROGRAM = [sys.executable, "-c", f"{HEEDS_CTRL_C}from vl2.cli.main import main; main()"]
# Makes the terminal on stdin the controlling one, so that Ctrl-C typed there becomes a signal.
IN_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
LONG = ["-m", SMALL, "--device", "cpu", "--max-new-tokens", "4000"]
PATIENCE_S = 60.0


def test_the_program_answers_in_a_pipe():
    command = [
        *PROGRAM,
        "ask",
        "-",
        "-i",
        str(PHOTO),
        "-m",
        SMALL,
        "--device",
        "cpu",
        "--max-new-tokens",
        "3",
        "--json",
    ]
    done = subprocess.run(command, input=b"hello", capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3


def test_a_closed_pipe_ends_the_answer_quietly():
    with subprocess.Popen([*PROGRAM, "ask", "hello", *LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("command", [["ask", "hello"], ["chat"]], ids=lambda c: c[0])
def test_ctrl_c_ends_a_program_without_a_traceback(command):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *command, *LONG], **pipes) as process:
        process.stdin.write(b"hello\nhello\n")
        process.stdin.close()
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 130


class Terminal:
    """A program in a terminal, and a person who reads and types."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._ours, theirs = os.openpty()
        program = [sys.executable, "-c", IN_TERMINAL + PROGRAM[-1], *arguments]
        self.process = subprocess.Popen(
            program, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def read_until(self, pattern: str) -> str:
        """Return what is shown up to a match of the pattern, which is consumed."""
        deadline = time.monotonic() + PATIENCE_S
        while not (match := re.search(pattern, self.screen)):
            left = deadline - time.monotonic()
            assert left > 0, f"waited for {pattern!r}, the screen shows {self.screen!r}"
            if select.select([self._ours], [], [], left)[0]:
                self.screen += self._read()
        shown, self.screen = self.screen[: match.end()], self.screen[match.end() :]
        return shown

    def press_ctrl_c_until(self, pattern: str) -> None:
        """Press Ctrl-C, again after a second: one just before readline waits is only seen with the next key."""
        for _ in range(int(PATIENCE_S)):
            self.type("\x03")
            if select.select([self._ours], [], [], 1.0)[0]:
                break
        self.read_until(pattern)

    def _read(self) -> str:
        try:
            # Without the escapes by which readline marks pasting.
            return re.sub(r"\x1b\[\?2004[hl]\r?", "", os.read(self._ours, 65536).decode(errors="replace"))
        except OSError:  # Linux says so when the other side is closed
            return "<closed>"

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm", "LC_ALL": "C.UTF-8"}
    opened = Terminal(["chat", "--quiet", *LONG], environment)
    yield opened
    opened.close()


def test_a_person_chats_in_a_terminal(terminal, tmp_path):
    saved = tmp_path / "talk.json"
    terminal.read_until("> $")
    terminal.type("/image no/such.png\n")
    terminal.read_until(r"vl2: cannot read image no/such.png: there is no such file\r\n> $")
    terminal.type(f"/image {PHOTO}\n")
    terminal.read_until(r"attached \S+small50x37.png \(50 x 37\)\r\n> $")
    terminal.type("/nothing\n")
    terminal.read_until(r"vl2: no command /nothing: use /image, /clear, /save, /help or /exit\r\n> $")
    terminal.press_ctrl_c_until(r"\n> $")  # at the prompt

    terminal.type("what is it?\n")
    terminal.read_until(r"what is it\?\r\n\S")  # the answer streams
    terminal.type("\x03")  # Ctrl-C stops it, and nothing else
    shown = terminal.read_until(r"\r\n\[stopped\]\r\n> $")
    assert "Traceback" not in shown
    terminal.type(f"/save {saved}\n")
    terminal.read_until(r"saved \S+\r\n> $")
    messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[0]["content"][0] == {"type": "image", "image": str(PHOTO)}
    assert messages[1]["content"]

    terminal.type("/clear\n")
    terminal.read_until(r"cleared\r\n> $")
    terminal.type("\x04")  # Ctrl-D
    assert terminal.read_until("<closed>").endswith("\r\n<closed>")
    assert terminal.process.wait(PATIENCE_S) == 0
    history = (tmp_path / "state" / "vl2" / "chat_history").read_text(encoding="utf-8")
    assert "what is it?" in history.splitlines()
    assert "/clear" in history.splitlines()
