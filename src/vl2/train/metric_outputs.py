"""Where the metrics of a run go: stderr, metrics.jsonl, TensorBoard, Weights & Biases, trackio.

The first rank writes; on the others all of this does nothing.

None is imported before it is asked for. A run that resumes goes on in the same place, which the hosted ones know by an
id that is drawn when the run begins and kept in its folder: another run may have a folder of the same name. Steps that
are measured twice, since the run went back to its checkpoint, are the later ones in TensorBoard and the earlier ones in
the others; they have the same numbers but for the machine's speed.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from vl2.errors import UserError
from vl2.optional_imports import install_extra, install_packages
from vl2.progress import ProgressDisplay
from vl2.train.metrics import MetricsFile, StepMetrics
from vl2.train.ranks import Ranks
from vl2.train.recipe import Recipe, TrackerName


class Outputs:
    """Takes the steps and evaluations of a run. Closed when it is left."""

    def __init__(self, recipe: Recipe, ranks: Ranks, step: int) -> None:
        """Go on after `step`."""
        self._file: MetricsFile | None = None
        self._trackers: list[Tracker] = []
        if ranks.is_first:
            folder = Path(recipe.run.folder)
            self._file = MetricsFile(folder, last_step=step)
            config = {"recipe": recipe.to_toml()}
            self._trackers = [open_tracker(name, folder, config, step + 1) for name in tracker_names(recipe)]

    def __enter__(self) -> Outputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for output in (*self._trackers, *((self._file,) if self._file is not None else ())):
            output.close()

    def step(self, metrics: StepMetrics) -> None:
        if self._file is not None:
            self._file.append(metrics.to_dict())
        for tracker in self._trackers:
            tracker.log(metrics.step, metrics.scalars())

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        if self._file is not None:
            self._file.append({"step": step, "evaluation": dict(scores)})
        for tracker in self._trackers:
            tracker.log(step, {f"evaluation/{name}": value for name, value in scores.items()})


def tracker_names(recipe: Recipe) -> tuple[TrackerName, ...]:
    """Return the trackers of a run: TensorBoard wherever it can be had, then those that the recipe asks for."""
    asked = recipe.run.trackers
    if "tensorboard" not in asked and importlib.util.find_spec("tensorboard") is not None:
        return ("tensorboard", *asked)
    return asked


# How a training run shows its steps.


class TrainProgress(ProgressDisplay):
    """Shows the steps of a run on stderr. Enter it before the first step."""

    def __init__(
        self, num_steps: int, first_step: int, *, log_every: int = 1, quiet: bool = False, file: TextIO | None = None
    ) -> None:
        super().__init__(num_steps, done_before=first_step, quiet=quiet, is_kept=True, file=file)
        self._num_steps = num_steps
        self._log_every = log_every

    def step(self, metrics: StepMetrics) -> None:
        """Show a step that is done."""
        self.done = metrics.step
        is_due = metrics.step % self._log_every == 0 or metrics.step == self._num_steps
        line = f"vl2: step {metrics.step:,}/{self._num_steps:,}  {describe(metrics)}  {self.time_left()}"
        self.show(describe(metrics), line=line if is_due else None, line_every_s=0.0)


def describe(metrics: StepMetrics) -> str:
    """Return the figures of a step that one watches."""
    parts = [
        f"loss {metrics.loss:.4f}",
        f"rate {metrics.learning_rate:.2e}",
        f"norm {metrics.grad_norm:.2f}",
        f"{metrics.tokens_per_s:,.0f} tokens/s",
    ]
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.0%}")
    if metrics.discarded:
        parts.append(f"discarded: {metrics.discarded}")
    return "  ".join(parts)


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
