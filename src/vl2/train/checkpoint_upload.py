"""Copy finished checkpoints to a `CheckpointStore` in a thread while training continues.

Every rank copies the files that it wrote. The first rank begins and ends a copy, and ranks signal each other with files
in the run folder, because a thread must not use collectives while the main thread does. No failure of the store stops
the training: it is reported in one line, and the next checkpoint is tried again.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from vl2.train.checkpoint_store import CheckpointStore
from vl2.train.ranks import Ranks, on_first_rank

ATTEMPTS = 4  # of each operation of the store
PAUSE_S = 2.0  # before the second attempt; before each further one four times as long
_WAIT_S = 0.05  # polling interval for the files of other ranks
_BEGUN = "begun"

T = TypeVar("T")
RemovedSteps = Callable[[list[int]], list[int]]


class Uploads:
    """Copies the checkpoints of one run, one at a time."""

    def __init__(
        self,
        store: CheckpointStore,
        folder: Path,
        ranks: Ranks,
        *,
        removes: RemovedSteps,
        timeout_s: float,
    ) -> None:
        """Prepare to copy the checkpoints in `folder`.

        `removes` returns which of the steps in the store are to be removed. Ranks wait for each other's files up to
        `timeout_s`.
        """
        self.store = store
        self._folder = folder
        self._ranks = ranks
        self._removes = removes
        self._timeout_s = timeout_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vl2-upload")
        self._uploading: Future[None] | None = None
        self._is_given_up = threading.Event()
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._step: int | None = None  # the last one begun
        self._copied: int | None = None  # the last one that the first rank knows to be whole

    @property
    def current_step(self) -> int | None:
        """The step that is being copied, whose local files are still needed."""
        return self._step if self._is_busy else None

    def lines(self) -> list[str]:
        """Return what is to be reported since the last call. Only the first rank has anything to report."""
        lines = []
        while True:
            try:
                lines.append(self._lines.get_nowait())
            except Empty:
                return lines

    def prepare(self, step: int) -> bool:
        """Return whether the checkpoint of a step can be copied now. All ranks call this together, before a barrier.

        It cannot while any rank still copies the one before, since waiting would hold up the training.
        """
        if float(self._ranks.max_(torch.tensor(float(self._is_busy)))):
            if self._ranks.is_first:
                self._lines.put(
                    f"the checkpoint of step {step} is not copied now: {self.store.url} is still receiving "
                    f"that of step {self._step}"
                )
            return False
        if self._ranks.is_first:
            self._remove_signals()
            self._signals(step).mkdir(parents=True)
        return True

    def start(self, step: int, written: Future[None] | None) -> None:
        """Copy the checkpoint of a step in a thread, once it is `written`. All ranks must call this together."""
        self._step = step
        self._uploading = self._thread.submit(self._upload, step, written)

    def finish(self, newest: int | None) -> None:
        """Wait for the current copy, and then copy the newest checkpoint unless it is in the store.

        All ranks must call this together.
        """
        if on_first_rank(self._ranks, self._timeout_s, lambda: self._misses(newest)) and newest is not None:
            self.wait()
            if self.prepare(newest):
                self._ranks.barrier()
                self.start(newest, None)
        on_first_rank(self._ranks, self._timeout_s, self.wait)
        self.wait()
        if self._ranks.is_first and newest is not None and self._copied == newest:
            self._lines.put(f"the checkpoint of step {newest} is in {self.store.name(newest)} too")

    def wait(self) -> None:
        """Wait for the current copy of this rank."""
        if self._uploading is not None:
            self._uploading.result()

    def give_up(self) -> None:
        """Stop retrying and waiting for other ranks, because one is lost."""
        self._is_given_up.set()

    def close(self) -> None:
        """End the thread after the current copy."""
        self._thread.shutdown(wait=True)

    @property
    def _is_busy(self) -> bool:
        return self._uploading is not None and not self._uploading.done()

    def _misses(self, newest: int | None) -> bool:
        self.wait()
        if newest is None or self._copied == newest:
            return False
        try:
            return newest not in self._retry(self.store.steps)
        except Exception:  # whatever a client raises; the copy will be tried and its failure reported
            return True

    def _upload(self, step: int, written: Future[None] | None) -> None:
        if written is not None and written.exception() is not None:  # the main thread reports this one
            self._remove_signals()
            return
        try:
            if self._ranks.is_first:
                self._upload_first(step)
            else:
                self._upload_other(step)
        except Exception as error:  # whatever a client raises, training must go on
            if self._ranks.is_first:
                last = "" if self._copied is None else f"; the last one there is that of step {self._copied}"
                self._lines.put(
                    f"cannot copy the checkpoint of step {step} to {self.store.url}, it is in the run folder only: "
                    f"{reason(error)}{last}"
                )
            else:
                self._signal(step, f"rank {self._ranks.rank}: {reason(error)}")
        finally:
            if self._ranks.is_first:
                self._remove_signals()

    def _upload_first(self, step: int) -> None:
        folder = self._folder / f"step-{step:08d}"
        self._retry(lambda: self.store.begin(step))
        (self._signals(step) / _BEGUN).touch()
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        for name in sizes:
            if not name.startswith("rank-") or name.startswith(_rank_name(0)):
                self._put(folder / name, step)
        for rank in range(1, self._ranks.size):
            signal = self._signals(step) / _rank_name(rank)
            self._wait_for(signal)
            failure = signal.read_text(encoding="utf-8")
            if failure:
                raise OSError(None, failure)
        self._retry(lambda: self.store.finish(step, sizes))
        self._copied = step
        try:
            self._remove_old()
        except Exception as error:  # as above
            self._lines.put(f"cannot remove old checkpoints from {self.store.url}: {reason(error)}")

    def _upload_other(self, step: int) -> None:
        signals = self._signals(step)
        self._wait_for(signals / _BEGUN)
        for path in sorted((self._folder / f"step-{step:08d}").glob(f"{_rank_name(self._ranks.rank)}.*")):
            self._put(path, step)
        self._signal(step, "")

    def _remove_old(self) -> None:
        """Remove old copies by the rule, and copies that a killed run left unfinished."""
        whole = self._retry(self.store.steps)
        unfinished = set(self._retry(self.store.begun_steps)) - set(whole)
        for step in sorted({*self._removes(whole), *unfinished}):
            self._retry(lambda step=step: self.store.remove(step))  # type: ignore[misc]

    def _put(self, path: Path, step: int) -> None:
        self._retry(lambda: self.store.put(path, step))

    def _retry(self, work: Callable[[], T]) -> T:
        return retry(work, self._is_given_up)

    def _signals(self, step: int) -> Path:
        return self._folder / f".step-{step:08d}.upload"

    def _signal(self, step: int, failure: str) -> None:
        """Tell the first rank that this rank's files are in the store, or why they are not."""
        path = self._signals(step) / _rank_name(self._ranks.rank)
        partial = path.with_suffix(".partial")
        try:
            partial.write_text(failure, encoding="utf-8")
            partial.replace(path)
        except OSError:  # the first rank has given up and removed the folder
            return

    def _remove_signals(self) -> None:
        if self._ranks.is_first:
            for path in self._folder.glob(".step-*.upload"):
                shutil.rmtree(path, ignore_errors=True)

    def _wait_for(self, path: Path) -> None:
        until = time.monotonic() + self._timeout_s
        while not path.exists():
            if not path.parent.exists():
                raise OSError(None, "the first rank has ended the copy")
            if self._is_given_up.wait(_WAIT_S) or time.monotonic() > until:
                raise OSError(None, "another rank has not copied its part")


def retry(work: Callable[[], T], is_given_up: threading.Event | None = None) -> T:
    """Return the result of `work`, which is tried `ATTEMPTS` times with growing pauses. Raise its last error."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return work()
        except Exception:  # whatever a client raises
            pause = PAUSE_S * 4**attempt
            if is_given_up is None:
                time.sleep(pause)
            elif is_given_up.wait(pause):
                raise
    return work()


def _rank_name(rank: int) -> str:
    return f"rank-{rank:05d}"


def reason(error: Exception) -> str:
    """Return an error in one line."""
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return " ".join(text.split())[:300] or type(error).__name__
