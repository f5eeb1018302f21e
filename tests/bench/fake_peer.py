"""A peer that says fixed times, and fails in the way that its argument names."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))

from vl2.bench.protocol import Answer, Task, Unsupported, serve

HOW = sys.argv[1] if len(sys.argv) > 1 else "well"


def load(task: Task) -> Answer:
    print("a library says hello")  # must not reach the protocol
    if HOW == "dies":
        sys.exit("the model is too large for me")
    if HOW == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if HOW == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if HOW == "fails":
        raise ValueError("no such model")
    if HOW == "says nothing":
        return {}
    if HOW == "has no time":
        return {"name": "fake 1.0"}
    if HOW == "made its weights":
        return {"name": "fake 1.0", "not_loaded": "its weights are drawn"}
    return {"seconds": 2.0, "name": "fake 1.0", "versions": {"fake": "1.0"}}


def prefill(task: Task) -> Answer:
    if HOW == "takes no time":
        return {"seconds": 0}
    return {"seconds": 0.5 * task["tokens"]}


def page(task: Task) -> Answer:
    parts = {"first_token_seconds": 1.0, "answer_seconds": 2.0} if HOW == "times its page" else {}
    return {"seconds": 3.0, **parts}


def encode(task: Task) -> Answer:
    raise Unsupported("it sees nothing")


if HOW == "babbles":
    print("not JSON", flush=True)
    sys.stdin.readline()
    sys.exit()
serve({"load": load, "prefill": prefill, "encode": encode, "page": page})
