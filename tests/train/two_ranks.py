"""Processes that train together over gloo, kept for many tests: starting one takes longer than most tests.

A scenario is a function of a module that all can import. It gets this process's `Ranks` first and runs in all at
the same time. One that fails or hangs takes all processes down; the next starts new ones.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import torch.distributed as dist

from tests.train.forks import forking
from vl2.train.ranks import join, leave

SIZE = 2
# Only a hang waits so long: a collective that one rank never enters fails after the first, a process after the second.
COLLECTIVE_S, SCENARIO_S = 60.0, 180.0
# Else the first rank would listen at the port; see `open_store`.
STORE_IS_KEPT = {"TORCHELASTIC_USE_AGENT_STORE": "True"}
_NO_ANSWER = (False, "no answer")


class TwoRanks:
    """Runs scenarios and returns what the processes made of them."""

    def __init__(self, collective_s: float = COLLECTIVE_S, size: int = SIZE) -> None:
        self._collective_s, self._size = collective_s, size
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._store: dist.TCPStore | None = None

    def run(self, scenario: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the results of all ranks, which must be ones that pickle takes."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((scenario, arguments)))
        results: dict[int, Any] = {}
        while len(results) < self._size:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            # Whoever answers first: the other may be waiting for one that has failed.
            ready = wait(waiting, SCENARIO_S)
            rank = next((r for r, pipe in enumerate(self._pipes) if pipe in ready), 0)
            is_well, value = _receive(self._pipes[rank]) if ready else _NO_ANSWER
            if not is_well:
                self.close()
                raise AssertionError(f"rank {rank}: {value}")
            results[rank] = value
        return [results[rank] for rank in range(self._size)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes, self._store = [], [], None

    def _start(self) -> None:
        context = forking()
        self._store = open_store()
        for rank in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self._size, self._store.port, theirs, self._collective_s), daemon=True
            )
            process.start()
            self._processes.append(process)
            self._pipes.append(ours)
        # A rank waits for another no longer than `collective_s`; on a busy machine one starts seconds after another.
        for pipe in self._pipes:
            pipe.recv_bytes()
        for pipe in self._pipes:
            pipe.send_bytes(b"")


def open_store() -> dist.TCPStore:
    """Return where ranks meet, as long as it is kept; torchrun's agent keeps one for them too (`STORE_IS_KEPT`).

    It listens at once, on a port of its own; a port found free for the first rank may be taken before it listens.
    """
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun must set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _receive(pipe: Connection) -> tuple[bool, Any]:
    try:
        answer: tuple[bool, Any] = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return False, "the process ended"
    return answer


def _serve(rank: int, size: int, port: int, pipe: Connection, collective_s: float) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment(rank, size, port) | STORE_IS_KEPT)
    pipe.send_bytes(b"")
    pipe.recv_bytes()
    ranks = join("cpu", timeout_s=collective_s)
    try:
        while True:
            scenario, arguments = pickle.loads(pipe.recv_bytes())
            try:
                answer = (True, scenario(ranks, *arguments))
            except Exception:  # whatever it is, the test shows it
                answer = (False, traceback.format_exc())
            pipe.send_bytes(pickle.dumps(answer))
    except EOFError:
        leave()
