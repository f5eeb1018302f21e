"""Begin a run with a checkpoint store: refuse another run's copies, and download a checkpoint to resume from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from vl2.errors import UserError
from vl2.train.checkpoint import FOLDER, newest_checkpoint
from vl2.train.checkpoint_store import CheckpointStore
from vl2.train.checkpoint_upload import reason, retry
from vl2.train.tensor_files import sync


def prepare_store(store: CheckpointStore, run_folder: Path, *, resume: bool, say: Callable[[str], None]) -> None:
    """Check a store, and download its newest checkpoint if a run is resumed whose folder has none.

    Only the first rank may call this. Raise UserError if the store cannot be used, or holds a run that is not to be
    resumed.
    """
    store.check(run_folder)
    if not resume and store.begun_steps():
        raise UserError(f"{store.url} already has a run: resume it with --resume, or choose another --run.checkpoints")
    if resume and newest_checkpoint(run_folder) is None:
        step = download_newest(store, run_folder / FOLDER)
        if step is not None:
            say(f"downloaded the checkpoint of step {step:,} from {store.url}")


def download_newest(store: CheckpointStore, folder: Path) -> int | None:
    """Download the newest whole checkpoint into `folder`, and return its step, or None if there is none.

    Raise UserError if the store fails.
    """
    try:
        steps = retry(store.steps)
        if not steps:
            return None
        partial = folder / f".step-{steps[-1]:08d}.partial"

        def download() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            store.download(steps[-1], partial)

        retry(download)
        final = folder / f"step-{steps[-1]:08d}"
        shutil.rmtree(final, ignore_errors=True)  # what is there is not whole
        sync(partial)
        partial.rename(final)
        sync(folder)
    except Exception as error:  # whatever a client raises
        raise UserError(f"cannot read the checkpoints in {store.url}: {reason(error)}") from None
    return steps[-1]
