"""Commands in two processes under torchrun: one answer, one line for an error, and one end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from vl2.infer.vlm import load

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
QUESTION, PICTURE = "What value does the chart show for Oslo?", str(ROOT / "examples" / "bars.png")


def start(*arguments: str) -> subprocess.Popen[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "vl2"]
    return subprocess.Popen(
        [sys.executable, *launch, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        start_new_session=True,
    )


def ours(said: str) -> list[str]:
    """Return our own lines. torchrun prints many of its own when a process fails."""
    return [line for line in said.splitlines() if line.startswith("vl2: ") or "Traceback" in line[:40]]


def test_two_processes_answer_as_one() -> None:
    process = start("ask", QUESTION, "-i", PICTURE, "--device", "cpu", "--dtype", "float32")
    answer, said = process.communicate(timeout=500)
    assert process.returncode == 0, said
    assert answer == load(device="cpu", dtype="float32").chat(QUESTION, [PICTURE]).text + "\n"


def test_an_error_of_the_user_is_one_line() -> None:
    process = start("ask", QUESTION, "-i", "nothing.png", "--device", "cpu")
    answer, said = process.communicate(timeout=500)
    assert process.returncode == 1
    assert answer == ""
    assert [line for line in ours(said) if line.startswith("vl2: ")] == [
        "vl2: cannot read image nothing.png: there is no such file"
    ]


def test_a_server_of_two_processes_answers_and_ends_as_one() -> None:
    process = start("serve", "--device", "cpu", "--dtype", "float32", "--port", "0")
    assert process.stderr is not None
    try:
        url = next(json.loads(line)["url"] for line in process.stderr if line.startswith("{") and '"ready"' in line)
        body = {"model": "nano", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            said = json.load(response)["choices"][0]["message"]["content"]
        assert said == load(device="cpu", dtype="float32").chat("Hello", max_new_tokens=4).text
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=300)
    finally:
        os.killpg(process.pid, signal.SIGKILL) if process.poll() is None else None
