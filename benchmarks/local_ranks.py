"""Ranks on this machine: a function run in several processes that form one process group over gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from vl2.train.ranks import join, leave


def run_ranks(size: int, run: Callable[..., float], *arguments: Any, pin: bool = False) -> list[float]:
    """Run `run(ranks, *arguments)` in so many processes of one thread each, and return what they gave, in no order.

    With `pin` process i stays on core i.
    """
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_rank, args=(rank, size, port, pin, run, arguments, results)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    values = [results.get(timeout=1800) for _ in processes]
    for process in processes:
        process.join()
    return values


def _rank(rank: int, size: int, port: int, pin: bool, run: Callable[..., float], arguments: Any, results: Any) -> None:
    torch.set_num_threads(1)
    if pin and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {rank})
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    results.put(run(join("cpu", timeout_s=600), *arguments))
    leave()
