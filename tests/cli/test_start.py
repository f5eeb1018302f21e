"""How the program starts: as a module, in a poor locale, without streams, and stopped before it has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ..reference import CHECKPOINTS, IMAGES

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and locales")

TINY = str(CHECKPOINTS / "tiny")
PHOTO = str(IMAGES / "small50x37.png")
# As a person's shell starts it: what runs in the background has Ctrl-C ignored, and so have its children.
HEEDS_CTRL_C = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
PATIENCE_S = 120.0


def start(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vl2", *arguments],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
    )


def test_the_package_can_be_run_as_a_module() -> None:
    done = start("--version")
    assert (done.returncode, done.stdout[:4], done.stderr) == (0, b"vl2 ", b"")
    assert b"usage: vl2 ask" in start("ask", "--help").stdout


STOPPED_WHILE_IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
from vl2.cli.main import main
main({arguments!r})
"""


@pytest.mark.parametrize(
    "module", ["vl2.cli.parse", "tyro", "vl2.cli.train", "PIL", "vl2.infer.prompts", "torch", "numpy"]
)
def test_ctrl_c_while_something_is_imported_is_quiet(module: str) -> None:
    program = STOPPED_WHILE_IMPORTING.format(module=module, arguments=["ask", "hi", "-m", TINY, "-i", PHOTO])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("code", [signal.SIGINT, signal.SIGTERM], ids=lambda code: code.name)
def test_a_signal_at_any_moment_of_the_start_is_quiet(code: signal.Signals) -> None:
    for wait_s in (0.15, 0.3, 0.6, 1.2):
        process = subprocess.Popen(
            [sys.executable, "-m", "vl2", "ask", "hi", "-m", TINY, "--max-new-tokens", "4000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            **HEEDS_CTRL_C,
        )
        with process:
            assert process.stderr is not None
            time.sleep(wait_s)
            process.send_signal(code)
            said = process.stderr.read()
        if b"site" in said and b"vl2" not in said:
            continue  # a busy machine: Python itself had not begun the program yet
        assert said == b"", f"after {wait_s} s"
        assert process.returncode in ((130, -signal.SIGINT, 0) if code is signal.SIGINT else (-signal.SIGTERM, 0))


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("chat", "--help"), ("train", "--help"), ("inspect", "nano"), ("eval", "list"), ("data", "build")],
    ids=" ".join,
)
def test_a_locale_of_ascii_alone_ends_no_command_in_a_traceback(arguments: tuple[str, ...]) -> None:
    done = start(*arguments, **ASCII)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout.decode("utf-8")


def test_in_a_locale_of_ascii_alone_names_and_messages_keep_their_characters(tmp_path: Path) -> None:
    picture = tmp_path / "报告.png"
    picture.write_bytes(Path(PHOTO).read_bytes())
    done = start("ask", "写着什么？", "-m", TINY, "-i", str(picture), "--max-new-tokens", "2", **ASCII)
    assert (done.returncode, done.stderr) == (0, b"")
    done = start("ask", "hi", "-i", str(tmp_path / "没有.png"), **ASCII)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "没有.png: there is no such file" in done.stderr.decode("utf-8")
    done = start("飞", **ASCII)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_an_encoding_lacks_is_printed_somehow(encoding: str) -> None:
    program = textwrap.dedent(
        """
        import sys
        from vl2.cli.main import _prepare_streams
        _prepare_streams()
        print("天", flush=True)
        print("天", file=sys.stderr)
        """
    )
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ("天\n".encode() if encoding == "ascii" else b"\\u5929\n")


def test_messages_never_go_to_stdout_where_stderr_is_closed() -> None:
    program = "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, '-m', 'vl2', *sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", program, "ask", ""], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, b"")
