"""How the process of a command ends: by the interpreter's own end, but for a rank among others without."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, sys
from vl2.cli.main import main
atexit.register(lambda: print("the interpreter ended", flush=True))
main(sys.argv[1:])
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a full disk, as Linux has one")
def test_an_answer_that_finds_no_room_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", "from vl2.cli.main import main; main(['--version'])"],
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert done.returncode == 1
    assert done.stderr == b"vl2: cannot write the answer: No space left on device\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    gone, end = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [sys.executable, "-c", "from vl2.cli.main import main; main(['--version'])"], stdout=end, stderr=subprocess.PIPE
    )
    os.close(end)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(("arguments", "code"), [(["--version"], 0), (["fly"], 2)])
def test_only_a_rank_among_others_that_is_done_ends_without_the_interpreters_end(
    arguments: list[str], code: int
) -> None:
    # One that failed may still be writing a checkpoint, for which the interpreter waits.
    for size, says in ((None, True), ("1", True), ("2", code != 0)):
        given = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments],
            env=given | ({} if size is None else {"WORLD_SIZE": size}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stderr
        assert ("the interpreter ended" in done.stdout) == says, f"WORLD_SIZE={size}"
        said = done.stdout if code == 0 else done.stderr
        assert "vl2" in said, "what was said before comes out all the same"
