"""Other places for the metrics: TensorBoard, Weights & Biases and trackio, each behind the same two calls.

None is imported before it is asked for. A run that resumes goes on in the same place, which the hosted ones know by an
id that is drawn when the run begins and kept in its folder: another run may have a folder of the same name. Steps that
are measured twice, since the run went back to its checkpoint, are the later ones in TensorBoard and the earlier ones in
the others; they have the same numbers but for the machine's speed.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

from vl2.errors import UserError
from vl2.install_hint import install_extra, install_packages

TrackerName = Literal["tensorboard", "wandb", "trackio"]
RUN_ID = "tracker_id"


class Tracker(Protocol):
    """Takes the numbers of a step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> None:
        with _needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Hosted:
    """wandb, or trackio, which has the same calls."""

    def __init__(self, module: Any, folder: Path, name: str, options: Mapping[str, Any]) -> None:
        self._module = module
        module.init(project="vl2", name=name, resume="allow", **options)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._module.log(dict(values), step=step)

    def close(self) -> None:
        self._module.finish()


def _wandb(folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> Tracker:
    with _needs("wandb"):
        import wandb
    options = {"id": _run_id(folder, first_step), "dir": str(folder), "config": dict(config)}
    return Hosted(wandb, folder, name, options)


def _trackio(folder: Path, name: str, config: Mapping[str, Any], first_step: int) -> Tracker:
    with _needs("trackio"):
        import trackio
    # Its runs have no ids: the name is what they are known by.
    return Hosted(trackio, folder, f"{name}-{_run_id(folder, first_step)}", {"config": dict(config)})


def _run_id(folder: Path, first_step: int) -> str:
    """Return the id of the run in a folder: the one that was drawn, if it goes on, else a new one."""
    path = folder / RUN_ID
    if first_step > 1 and path.is_file():
        return path.read_text(encoding="utf-8")
    run_id = secrets.token_hex(4)
    path.write_text(run_id, encoding="utf-8")
    return run_id


_OPENERS: dict[str, Callable[[Path, str, Mapping[str, Any], int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": _wandb,
    "trackio": _trackio,
}


def open_tracker(kind: TrackerName, folder: Path, config: Mapping[str, Any], first_step: int) -> Tracker:
    """Start or go on in one place. UserError says what to install."""
    name = "-".join(folder.absolute().parts[-2:]).strip("/")
    return _OPENERS[kind](folder, name, config, first_step)


@contextmanager
def _needs(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        how = install_extra("train") if package == "tensorboard" else install_packages(package)
        raise UserError(f"the tracker {package} is not installed: {how}") from None
