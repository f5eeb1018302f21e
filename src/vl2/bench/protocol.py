"""The protocol of benchmark targets: a process reads one task per line from stdin and writes one answer per line.

A task is a JSON object with the key "do". The answer is a JSON object too: it has "seconds" and other results of the
task, or "unsupported" or "error" with a sentence. The answer to "load" also has a "name" and "versions"; a target with
random weights gives the reason in "not_loaded" instead of the seconds. The answer to "page" may also have
"first_token_seconds" and "answer_seconds", which is the rest. Only answers go to stdout. This file needs the standard
library only, because a peer's adapter imports it in an environment without vl2's dependencies.

    {"do": "load", "model": FOLDER, "dtype": "bfloat16", "weights": "auto", "device": "cpu", "threads": 2}
    {"do": "encode", "tiles": 5, "seed": 1}
    {"do": "prefill", "tokens": 1000, "seed": 1}
    {"do": "decode", "batch": 4, "context": 32, "steps": 16, "seed": 1}
    {"do": "first_token", "side": 768, "seed": 1}           a question about the image of this seed
    {"do": "second_question", "side": 768, "seed": 1}       another question about the same image
    {"do": "page", "side": 1024, "tokens": 300, "seed": 1}  read the image of this seed, with an answer of this length
    {"do": "memory"}                                        the peak memory of this process, in "bytes"
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
PAGE_PROMPT = "<|grounding|>Convert the document to markdown."  # what DeepSeek-OCR is asked about a page
PAGE_TOKENS = 273  # of an image in mode "base": 16 rows of 16, a line break after each row, a separator
UNSEEN = 1_000_000  # added to the seed of a page, whose image must not be in the cache of encoded images
MEMORY_STATUS = Path("/proc/self/status")


class Unsupported(Exception):
    """A target cannot do a task. The message is the reason."""


def serve(handlers: Mapping[str, Callable[[Task], Answer]]) -> None:
    """Answer tasks from stdin until its end or the task "quit"."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print, so stdout is redirected to stderr
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
    """Call `run` and return the seconds that it took, as an answer."""
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start}


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    """Return random ids of ordinary tokens, the same on every machine for a seed."""
    # Special tokens are at the ends of a vocabulary, so ids from its middle avoid them.
    draw = random.Random(seed)
    return [draw.randrange(vocabulary // 8, vocabulary // 2) for _ in range(count)]


def make_image(side: int, seed: int) -> Any:
    """Return a square image of random colors, the same on every machine for a seed. `side` is in pixels."""
    from PIL import Image

    pixels = random.Random(seed).randbytes(32 * 32 * 3)
    return Image.frombytes("RGB", (32, 32), pixels).resize((side, side))


def page_image(task: Task) -> Any:
    """Return the image of a page task. No other task of a round has the same image."""
    return make_image(task["side"], task["seed"] + UNSEEN)


def check_page_tokens(number: int) -> None:
    """Raise Unsupported if the image takes another number of tokens in a peer's prompt than in ours."""
    if number != PAGE_TOKENS:
        raise Unsupported(f"an image has {PAGE_TOKENS} tokens in mode base, and {number} here")


def page_answer(start: float, first: float, end: float) -> Answer:
    """Return the answer to a page task from the times of its start, of the first token and of the last token."""
    return {"seconds": end - start, "first_token_seconds": first - start, "answer_seconds": end - first}


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes. Raise Unsupported if the system does not report it."""
    if MEMORY_STATUS.exists():  # preferred, because rusage includes the parent's memory from before exec
        for line in MEMORY_STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        raise Unsupported("this system does not report the peak memory of a process") from None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
