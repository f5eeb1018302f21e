"""llama.cpp or ik_llama.cpp by their own programs: for `vl2 bench --against "VENV/bin/python
benchmarks/peers/llama_programs.py BUILD [bf16|Q8_0|Q4_0] [FLAG ...]"`.

BUILD is a folder in which `cmake --build BUILD --target llama-batched-bench llama-quantize` was run, and the flags are
passed to `llama-batched-bench`. Every measurement starts that program, which loads the model again, reads 16 tokens to
warm up, and reports the seconds of its prompt and of its decoding steps. This checks the adapter `llama_text.py`
against the peer's own benchmark, and it measures ik_llama.cpp, for which there is no Python binding.

ik_llama.cpp does not know DeepSeek-MoE. For it, name the architecture first: `--as dots1`. A dots.llm1 model of tiny's
shapes has the same weights and one more norm for queries and keys. ik_llama.cpp's program gives every row the same
token, so its rows visit the same experts; change its token 0 to a random one before comparing several rows.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from llama_text import KINDS, write_gguf

from vl2.bench.protocol import Answer, Task, serve


def timings(printed: str) -> tuple[float, float]:
    """Return the seconds of the prompt and of the decoding steps from the table of `llama-batched-bench`."""
    rows = [line.split("|") for line in printed.splitlines() if re.match(r"\|\s*\d+ \|", line)]
    if len(rows) != 1:
        raise RuntimeError(f"llama-batched-bench must print one row of timings, it printed {len(rows)}")
    return float(rows[0][5]), float(rows[0][7])


class Peer:
    """A build of llama.cpp or ik_llama.cpp."""

    def __init__(self, build: Path, kind: str, architecture: str, flags: list[str]) -> None:
        if kind not in KINDS:
            sys.exit(f"the kind of weights must be one of {', '.join(KINDS)}, got {kind}")
        self._programs = build.resolve() / "bin"
        self._kind, self._architecture, self._flags = kind, architecture, flags
        self._folder = tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR"))
        self._peak_bytes = 0

    def load(self, task: Task) -> Answer:
        self._threads = task["threads"] or 2
        self._file = Path(self._folder.name) / "bf16.gguf"
        write_gguf(Path(task["model"]), self._file, self._architecture)
        if self._kind != "bf16":
            plain, self._file = self._file, self._file.with_name(f"{self._kind}.gguf")
            words = ["llama-quantize", "--pure", str(plain), str(self._file), self._kind, str(self._threads)]
            subprocess.run([str(self._programs / words[0]), *words[1:]], check=True, stdout=sys.stderr)
            plain.unlink()
        configuration = " ".join([f"{self._programs.parent.name} {self._kind}", *self._flags])
        return {"not_loaded": "each measurement loads the model", "name": f"llama-batched-bench of {configuration}"}

    def prefill(self, task: Task) -> Answer:
        return {"seconds": self._run(task["tokens"], 1, 1)[0]}

    def decode(self, task: Task) -> Answer:
        return {"seconds": self._run(task["context"], task["steps"], task["batch"])[1]}

    def memory(self, task: Task) -> Answer:
        return {"bytes": self._peak_bytes}

    def _run(self, context: int, steps: int, rows: int) -> tuple[float, float]:
        tokens = str(rows * (context + steps))
        sizes = {"-npp": str(context), "-ntg": str(steps), "-npl": str(rows), "-c": tokens, "-b": tokens, "-ub": "1024"}
        program = str(self._programs / "llama-batched-bench")
        command = [program, "-m", str(self._file), "-t", str(self._threads), *self._flags]
        command += [word for size in sizes.items() for word in size]
        # In the temporary folder, because ik_llama.cpp writes a log where it is started.
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self._folder.name
        )
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"llama-batched-bench ended with {child.returncode}: {printed[-300:]}")
        self._peak_bytes = max(self._peak_bytes, 1024 * usage.ru_maxrss)
        return timings(printed)


if __name__ == "__main__":
    words = sys.argv[1:]
    architecture = "deepseek"
    if words[:1] == ["--as"]:
        architecture, words = words[1], words[2:]
    if not words:
        sys.exit(__doc__)
    peer = Peer(Path(words[0]), words[1] if len(words) > 1 else "bf16", architecture, words[2:])
    serve({"load": peer.load, "prefill": peer.prefill, "decode": peer.decode, "memory": peer.memory})
