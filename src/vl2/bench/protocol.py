"""The answering side of a benchmark: a process that does one task a line, so that two can take turns.

A task is a JSON object with the key "do"; the answer is one as well: "seconds" and whatever else the task is about, or
"unsupported" or "error" with a sentence. The answer to "load" also says a "name" and "versions"; one that makes its
weights up, instead of loading them, says why in "not_loaded" in place of the seconds. Only answers go to stdout.
Standard library only: a peer's adapter imports this file in an environment that has nothing else of ours.

    {"do": "load", "model": FOLDER, "dtype": "bfloat16", "weights": "auto", "device": "cpu", "threads": 2}
    {"do": "encode", "tiles": 5, "seed": 1}
    {"do": "prefill", "tokens": 1000, "seed": 1}
    {"do": "decode", "batch": 4, "context": 32, "steps": 16, "seed": 1}
    {"do": "first_token", "side": 768, "seed": 1}           an image of that seed and a question
    {"do": "second_question", "side": 768, "seed": 1}       another question about the same image
    {"do": "memory"}                                        the most memory that this process had, in "bytes"
    {"do": "quit"}
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Task = Mapping[str, Any]
Answer = dict[str, Any]

QUESTIONS = ("Describe this image in detail.", "What is in the upper left corner?")
MEMORY_STATUS = Path("/proc/self/status")


class Unsupported(Exception):
    """Say why this target does not do a task."""


def serve(handlers: Mapping[str, Callable[[Task], Answer]]) -> None:
    """Do tasks from stdin until it ends or says quit."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    known = {"memory": lambda task: {"bytes": peak_bytes()}, **handlers}
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "quit":
            return
        print(json.dumps(_answer(known, task)), file=answers, flush=True)


def _answer(handlers: Mapping[str, Callable[[Task], Answer]], task: Task) -> Answer:
    if task["do"] not in handlers:
        return {"unsupported": f"this target has no {task['do']}"}
    try:
        return handlers[task["do"]](task)
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def timed(run: Callable[[], object]) -> Answer:
    """Run and return the seconds that it took."""
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start}


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Return token ids that are no special ones, the same everywhere for a seed."""
    draw = random.Random(seed)
    return [draw.randrange(vocabulary // 8, vocabulary // 2) for _ in range(count)]


def make_image(side: int, seed: int) -> Any:
    """Return a square picture of colored patches."""
    from PIL import Image

    pixels = random.Random(seed).randbytes(32 * 32 * 3)
    return Image.frombytes("RGB", (32, 32), pixels).resize((side, side))


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    if MEMORY_STATUS.exists():  # rusage also counts what the parent held when it started this process
        for line in MEMORY_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        raise Unsupported("this system does not say how much memory a process has had") from None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
