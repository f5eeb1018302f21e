"""Write and read the checkpoints of a run, from which it resumes as if it had not been interrupted.

A checkpoint is a folder `checkpoints/step-N`. The state is copied at the step, and a thread writes the copy to a
temporary folder while training continues. The folder gets its final name when every file of every rank is on disk, so a
folder with that name is always complete. Ranks signal the first rank with files that they are done, because a thread
must not use collectives while the main thread does. All ranks therefore need a shared file system. A `CheckpointStore`
may receive a copy of each finished checkpoint.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vl2.errors import UserError
from vl2.train.checkpoint_store import CheckpointStore
from vl2.train.checkpoint_upload import Uploads
from vl2.train.ranks import ONE, Ranks
from vl2.train.tensor_files import (
    BlockOf,
    Snapshot,
    TensorReader,
    fill,
    sync,
    take_snapshot,
    whole_block,
    write_json,
    write_tensors,
)

FOLDER, STATE, RECIPE = "checkpoints", "state.json", "recipe.toml"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_WAIT_S = 0.05  # polling interval of the first rank for the files of the others


@dataclass(frozen=True, kw_only=True)
class Retention:
    """Which checkpoints to keep after a newer one is complete."""

    newest: int = 3
    every_steps: int | None = None  # also keep all checkpoints at multiples of this

    def removes(self, steps: list[int], best: int | None = None) -> list[int]:
        """Return the steps whose checkpoints are to be removed. The checkpoint of the step `best` is kept."""
        old = sorted(steps)[: -self.newest]
        return [step for step in old if step != best and not (self.every_steps and step % self.every_steps == 0)]


class Checkpoints:
    """Writes, finds and loads the checkpoints of a run."""

    def __init__(
        self,
        run_folder: Path,
        *,
        keep: Retention | None = None,
        ranks: Ranks = ONE,
        block_of: BlockOf = whole_block,
        writes_whole: bool | None = None,
        most_wait_s: float = 1800.0,
        store: CheckpointStore | None = None,
    ) -> None:
        """Prepare to write checkpoints into a run folder, and to copy them to `store`.

        The first rank waits up to `most_wait_s` for the other ranks' files; after that the checkpoint has failed.
        `writes_whole` says whether this rank writes the tensors that several ranks hold in full; by default the first
        rank does. If ranks hold different layers, the first rank of those with the same layers must.
        """
        self.folder = run_folder / FOLDER
        self._keep = keep or Retention()
        self._ranks = ranks
        self._block_of = block_of
        self._writes_whole = ranks.is_first if writes_whole is None else writes_whole
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="vl2-checkpoint")
        self._writing: Future[None] | None = None
        self._is_given_up = threading.Event()
        self._most_wait_s = most_wait_s
        self._step = 0
        self.best_step: int | None = None  # a step whose checkpoint is kept however old it is
        self._uploads: Uploads | None = None
        if store is not None:
            self._uploads = Uploads(store, self.folder, ranks, removes=self._removes, timeout_s=most_wait_s)

    def save(self, step: int, state: Mapping[str, Any], recipe: str) -> None:
        """Copy the state and start writing it in a thread. All ranks must call this together.

        Wait first if the previous checkpoint is still being written. Raise UserError if that one failed, as `check`
        and `wait` do.
        """
        self.wait()
        snapshot = take_snapshot(state, self._block_of, writes_whole=self._writes_whole)
        generators = take_snapshot({"random": random_state()}, self._block_of, writes_whole=self._ranks.is_first)
        snapshot = Snapshot(
            tensors={**snapshot.tensors, **generators.tensors}, values={**snapshot.values, **generators.values}
        )
        self._step = step
        partial = self.folder / f".step-{step:08d}.partial"
        try:
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            is_copied = self._uploads is not None and self._uploads.prepare(step)
        except OSError as error:
            raise self._write_error(error) from None
        self._ranks.barrier()
        self._writing = self._writer.submit(self._write, step, snapshot, recipe, partial)
        if self._uploads is not None and is_copied:
            self._uploads.start(step, self._writing)

    def check(self) -> None:
        """Raise UserError if the last write has failed, without waiting for it."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the current write is finished. Raise UserError if it failed."""
        if self._writing is None:
            return
        writing, self._writing = self._writing, None
        try:
            writing.result()
        except OSError as error:
            raise self._write_error(error) from None

    def give_up(self, after_s: float) -> None:
        """Wait up to `after_s` for the current write, then stop waiting for the files of other ranks.

        Call this when a rank is lost. Otherwise the writer thread would keep waiting for that rank's files, and the
        interpreter would wait for the thread at exit.
        """
        try:
            if self._writing is not None:
                wait_for_futures([self._writing], after_s)
        finally:
            self._is_given_up.set()
            if self._uploads is not None:
                self._uploads.give_up()

    def finish_uploads(self) -> None:
        """Wait until the store has the newest checkpoint, or has failed. All ranks must call this together."""
        if self._uploads is not None:
            self._ranks.barrier()  # the first rank has written the last checkpoint
            steps = checkpoint_steps(self.folder.parent)
            self._uploads.finish(steps[-1] if steps else None)

    @property
    def is_uploading(self) -> bool:
        """Whether this rank is copying a checkpoint to a store."""
        return self._uploads is not None and self._uploads.current_step is not None

    def upload_lines(self) -> list[str]:
        """Return what the copying to a store has to report since the last call."""
        return self._uploads.lines() if self._uploads is not None else []

    def close(self) -> None:
        """Finish the current write and end the writer threads."""
        self._writer.shutdown(wait=True)
        if self._uploads is not None:
            self._uploads.close()

    def newest(self) -> Path | None:
        """Return the newest complete checkpoint, or None."""
        return newest_checkpoint(self.folder.parent)

    def at(self, step: int) -> Path:
        """Return the folder of a step's checkpoint."""
        return self.folder / f"step-{step:08d}"

    def load(self, folder: Path, into: Mapping[str, Any]) -> dict[str, Any]:
        """Fill the tensors of a state in place, and return the state with the stored values.

        The checkpoint may have been written by any number of ranks. The random generators are restored as well. Raise
        UserError if the checkpoint does not match the state.
        """
        values = read_state(folder)["values"]
        reader = TensorReader(folder)
        generators = random_state()
        if "random/cuda" not in reader.unread():  # the checkpoint was written on another kind of device
            generators.pop("cuda", None)
        template = {**into, "random": generators}
        loaded: dict[str, Any] = fill(template, values, reader, self._block_of)
        # Tensors that another rank has read belong to layers that this rank does not hold.
        unread = set.intersection(*map(set, self._ranks.gather_objects(reader.unread())))
        surplus = sorted(path for path in unread if not path.startswith("random/"))
        if surplus:
            raise UserError(f"{folder} has {surplus[0]}, which this run does not have: is it from another recipe?")
        set_random_state(loaded.pop("random"))
        return loaded

    def remove_partial(self) -> None:
        """Remove the incomplete checkpoints of a killed run."""
        for path in self.folder.glob(".step-*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _write(self, step: int, snapshot: Snapshot, recipe: str, partial: Path) -> None:
        try:
            write_tensors(snapshot, partial, self._ranks.rank)
            if not self._ranks.is_first:
                return
            tables = [partial / f"rank-{rank:05d}.json" for rank in range(self._ranks.size)]
            self._wait_for(tables)
            (partial / RECIPE).write_text(recipe, encoding="utf-8")
            sync(partial / RECIPE)
            about = {"format": _FORMAT, "step": step, "num_ranks": self._ranks.size, "values": snapshot.values}
            write_json(about, partial / STATE)
            sync(partial)
            final = self.folder / f"step-{step:08d}"
            _remove(final)
            partial.rename(final)
            sync(self.folder)
        except BaseException:
            if self._ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
        being_copied = self._uploads.current_step if self._uploads is not None else None
        for old in self._removes(checkpoint_steps(self.folder.parent)):
            if old != being_copied:
                _remove(self.folder / f"step-{old:08d}")

    def _removes(self, steps: list[int]) -> list[int]:
        return self._keep.removes(steps, self.best_step)

    def _wait_for(self, paths: Sequence[Path]) -> None:
        until = time.monotonic() + self._most_wait_s
        while not all(path.exists() for path in paths):
            if self._is_given_up.wait(_WAIT_S) or time.monotonic() > until:
                raise OSError(None, "the other ranks have not written their parts")

    def _write_error(self, error: OSError) -> UserError:
        last = self.newest()
        remains = f"the last complete one is {last}" if last is not None else "there is no complete one"
        return UserError(
            f"cannot write the checkpoint of step {self._step} in {self.folder}: {error.strerror or error}; {remains}"
        )


def checkpoint_steps(run_folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints of a run, in order."""
    folder = run_folder / FOLDER
    if not folder.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted(int(match[1]) for match, path in found if match is not None and _is_complete(path))


def newest_checkpoint(run_folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a run, or None."""
    steps = checkpoint_steps(run_folder)
    return run_folder / FOLDER / f"step-{steps[-1]:08d}" if steps else None


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint at a path, which is a checkpoint itself or a run folder, whose newest one is taken.

    Raise UserError if there is none.
    """
    if (path / STATE).is_file():
        return path
    newest = newest_checkpoint(path)
    if newest is None:
        raise UserError(f"there is no checkpoint in {path}")
    return newest


def read_state(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's state.json: step, number of ranks and the values of the state.

    Raise UserError if it is not a checkpoint of this format.
    """
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] != _FORMAT:
            raise UserError(f"{folder} has format {state['format']}, this program reads {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} is not a checkpoint: {error}") from None
    return state


def random_state() -> dict[str, Any]:
    """Return the state of Python's and PyTorch's generators."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(numbers), gauss], "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _is_complete(folder: Path) -> bool:
    """Return whether all files exist in full size. After a power loss, a file may exist without its content."""
    try:
        for rank in range(read_state(folder)["num_ranks"]):
            table = json.loads((folder / f"rank-{rank:05d}.json").read_text(encoding="utf-8"))
            if (folder / f"rank-{rank:05d}.safetensors").stat().st_size != table["bytes"]:
                return False
    except (UserError, OSError, ValueError, KeyError, TypeError):
        return False
    return True


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its state file first, so that a partly removed folder does not count as a checkpoint."""
    (folder / STATE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
