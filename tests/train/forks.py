"""Processes forked from one that has imported what training needs: importing takes longer than most of them live."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import BaseContext
from pathlib import Path

import torch

from vl2.cli.main import main

_IMPORTED = ["vl2.train.run", "vl2.cli.train", "vl2.train.export", "torch.distributed.pipelining"]

# What comes before a program that trains, where nobody looks at the pictures of the run: see conftest.py.
UNDRAWN = "import vl2.train.run; vl2.train.run._save_plots = lambda folder, say: None"


def forking() -> BaseContext:
    """Return how processes are started: forked where that is safe with PyTorch imported, else anew."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    return context


class Fork:
    """`vl2 ...` in a process of its own: as from a shell, but for the interpreter's start."""

    def __init__(
        self,
        arguments: Sequence[str],
        said: Path,
        *,
        environment: Mapping[str, str] | None = None,
        first: Callable[[], None] | None = None,
        before: str = "",
    ) -> None:
        """What it says goes to the file `said`; `first` and the program `before` come before its own."""
        self._said = said
        self._process = forking().Process(
            target=_live, args=(list(arguments), said, dict(environment or {}), first, before), daemon=True
        )
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)

    def end(self, timeout_s: float = 240.0) -> tuple[int, str]:
        """Wait for the end and return the exit code and what was said."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, "the process has not ended"
        return self._process.exitcode, self._said.read_text(encoding="utf-8")

    def kill(self) -> tuple[int, str]:
        self.send_signal(signal.SIGKILL)
        return self.end()


def wait_for_steps(run_folder: Path, count: int, processes: Sequence[Fork]) -> None:
    """Wait until so many steps stand in the metrics, or a process has ended."""
    path = run_folder / "metrics.jsonl"
    while all(process.is_alive for process in processes) and (
        not path.exists() or path.read_bytes().count(b"\n") < count
    ):
        time.sleep(0.005)


def _live(
    arguments: list[str], said: Path, environment: dict[str, str], first: Callable[[], None] | None, before: str
) -> None:
    with said.open("wb") as file:
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    if first is not None:
        first()
    exec(f"{UNDRAWN}\n{before}", {})
    main(arguments)
