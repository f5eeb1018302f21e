"""Write the metrics of a run to stderr, metrics.jsonl, TensorBoard, Weights & Biases and trackio.

Only the first rank writes. Trackers are imported only if they are used. A resumed run continues in the same place; the
hosted trackers identify it by a random id in the run folder, because different runs may have equal folder names. If
steps are repeated after a resume, TensorBoard keeps the later values and the other trackers the earlier ones. They
differ only in the machine's speed.
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
    """Writes the steps and evaluations of a run to all outputs. A context manager that closes them."""

    def __init__(self, recipe: Recipe, ranks: Ranks, step: int) -> None:
        """Open the outputs to continue after `step`. Raise UserError if a tracker is not installed."""
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
    """Return the trackers of a run: TensorBoard if it is installed, and those in the recipe."""
    asked = recipe.run.trackers
    if "tensorboard" not in asked and importlib.util.find_spec("tensorboard") is not None:
        return ("tensorboard", *asked)
    return asked


class TrainProgress(ProgressDisplay):
    """Displays the steps of a run on stderr. A context manager."""

    def __init__(
        self, num_steps: int, first_step: int, *, log_every: int = 1, quiet: bool = False, file: TextIO | None = None
    ) -> None:
        super().__init__(num_steps, done_before=first_step, quiet=quiet, is_kept=True, file=file)
        self._num_steps = num_steps
        self._log_every = log_every

    def step(self, metrics: StepMetrics) -> None:
        """Display a finished step."""
        self.done = metrics.step
        is_due = metrics.step % self._log_every == 0 or metrics.step == self._num_steps
        line = f"vl2: step {metrics.step:,}/{self._num_steps:,}  {describe(metrics)}  {self.time_left()}"
        self.show(describe(metrics), line=line if is_due else None, line_every_s=0.0)


def describe(metrics: StepMetrics) -> str:
    """Return the main metrics of a step in one line."""
    parts = [
        f"loss {metrics.loss:.4f}",
        f"rate {metrics.learning_rate:.2e}",
        f"norm {metrics.grad_norm:.2f}",
        f"{metrics.tokens_per_s:,.0f} tokens/s",
    ]
    if metrics.is_packed:
        parts.append(f"packs {metrics.pack_fill:.0%} full")
    if metrics.preference_accuracy is not None:
        parts.append(f"preferred {metrics.preference_accuracy:.0%}")
    if metrics.mfu is not None:
        parts.append(f"MFU {metrics.mfu:.0%}")
    if metrics.discarded:
        parts.append(f"discarded: {metrics.discarded}")
    return "  ".join(parts)


RUN_ID = "tracker_id"


class Tracker(Protocol):
    """An experiment tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Writes TensorBoard event files to the run folder."""

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
    """Logs to wandb, or to trackio, which has the same interface."""

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
    # trackio identifies runs by their name only, so the id is a part of it.
    return Hosted(trackio, folder, f"{name}-{_run_id(folder, first_step)}", {"config": dict(config)})


def _run_id(folder: Path, first_step: int) -> str:
    """Return the id of the run in a folder: the stored one for a resumed run, else a new random one."""
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
    """Open a tracker for a new or resumed run. Raise UserError if it is not installed."""
    name = "-".join(folder.absolute().parts[-2:]).strip("/")
    return _OPENERS[kind](folder, name, config, first_step)


@contextmanager
def _needs(package: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        how = install_extra("train") if package == "tensorboard" else install_packages(package)
        raise UserError(f"the tracker {package} is not installed: {how}") from None
