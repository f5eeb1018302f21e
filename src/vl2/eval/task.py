"""What a benchmark is: items from local files, protocols that ask and score them, and the figure they sum up to.

Protocols have names: `paper`, `vlmevalkit`, `lmms-eval`, or `vl2` for this project's own tasks.
Scores of an item are 0..1; a metric maps results to named figures, the headline first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.hub import HUB, Dataset, fetch
from vl2.process.conversation import Turn

Json = Any
REFUSED = "refused"  # how a result ends whose item could not be asked


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with its gold answers."""

    id: str
    question: str
    images: tuple[Any, ...] = ()  # what the processor opens: bytes, a path or a picture
    gold: Json  # what the scorer of the task compares with; plain JSON
    options: tuple[str, ...] = ()  # of a multiple-choice question, A first
    part: str = ""  # the category that it is also reported under
    cluster: str = ""  # items with one picture or sentence are not independent: the bootstrap draws them together
    notes: Mapping[str, Json] = field(default_factory=dict)  # what only this benchmark's prompt or scorer knows


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An item of the data that a run does not ask, and why, in words that follow a number of items."""

    why: str
    is_of_other_split: bool = False  # then the run is whole without it
    comes_with_whole: bool = False  # `DataSource.whole` takes it too


OTHER_SPLIT = LeftOut(why="of other splits", is_of_other_split=True)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What was read off an answer, and its score."""

    value: float
    read: str = ""
    is_undecided: bool = False  # the harness would ask a judge; without one the score above stands


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of a run's results. It depends on the item and the model alone."""

    id: str
    part: str
    cluster: str
    prompt: str
    answer: str
    read: str
    gold: Json
    score: float
    is_undecided: bool
    finish_reason: str  # stop, length, or refused: it could not be asked, and `read` says why
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True)
class JudgeRule:
    """How a language model is asked about an answer that the rules cannot read."""

    prompt: Callable[[Item, str], str]
    score: Callable[[Item, str], Score]  # reads the judge's reply


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an item is asked and its answer scored."""

    ask: Callable[[Item], list[Turn]]
    score: Callable[[Item, str], Score]
    says: str  # how the answer is read and scored, in a sentence or two
    max_new_tokens: int = 512
    max_tiles: int | None = None  # local tiles allowed, where the benchmark allows more than the model's nine
    judge: JudgeRule | None = None
    metric: Metric | None = None  # instead of the task's, where the harness sums up otherwise


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Where the data of a task lie, and which part of them is taken."""

    data: Path | None = None  # a folder, or `hub` for the task's own public data set
    split: str | None = None
    fonts: Path | None = None  # a folder of fonts for drawn texts
    whole: bool = False  # also what is kept for training

    def folder(self, task: Task) -> Path:
        """Return the folder of a task: one of its names within `data` if there is one, else `data` itself."""
        if self.data is None:
            raise UserError(f"{task.name} reads local files: say where with --data; it {task.layout}")
        if str(self.data) == HUB:
            if task.hub is None:
                raise UserError(f"{task.name} has no data set on the hub: say where its files are with --data")
            return fetch(task.hub, self.part(task))
        if not self.data.exists():
            raise UserError(f"--data {self.data} is not there")
        return next((path for name in task.folders if (path := self.data / name).is_dir()), self.data)

    def part(self, task: Task) -> str:
        """Return the split that is read of a task."""
        return self.split or task.split


Metric = Callable[[Sequence[Result]], dict[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One benchmark. Each is one value, equal to itself only."""

    name: str
    title: str  # what it asks, in a sentence
    layout: str  # what it reads, or how it is drawn
    read: Callable[[Task, DataSource], Iterator[Item | LeftOut]]
    protocols: Mapping[str, Protocol]
    split: str = ""  # the part that is read by default, as its files name it
    published_by: str | None = None  # the protocol that gives the published figure
    published: str | None = None  # its column in vl2.eval.published
    published_split: str | None = None  # the figure's, where it is not the one that is run by default
    metric: Metric
    folders: tuple[str, ...] = ()  # names of its folder within a folder of several benchmarks
    hub: Dataset | None = None  # its public copy
    unit: str = "%"
    count: int | None = None  # items drawn by default; None where files say it
    has_whole: bool = False  # a part of the data is kept for training, and `DataSource.whole` asks it too
    is_mean: bool = False  # the headline is the mean score, whatever else the metric gives
    keeps_clusters: bool = False  # an item counts only together with the others of its cluster
    # Makes a result per question of those of its items; the headline is their mean.
    merge: Callable[[Sequence[Result]], list[Result]] | None = None

    @property
    def is_drawn(self) -> bool:
        return self.count is not None

    def protocol(self, name: str | None = None) -> tuple[str, Protocol]:
        """Return the protocol of a name, with that name; the default gives the published figure where there is one."""
        name = name or self.published_by or next(iter(self.protocols))
        if name not in self.protocols:
            raise UserError(f"protocols of {self.name} are {', '.join(self.protocols)}, got {name}")
        return name, self.protocols[name]

    def items(self, source: DataSource) -> Iterator[Item]:
        return (found for found in self.read(self, source) if isinstance(found, Item))

    def metric_of(self, name: str) -> Metric:
        """Return how a protocol sums up the scores."""
        return self.protocols[name].metric or self.metric

    @property
    def scale(self) -> float:
        """The best figure there can be."""
        return float(self.unit.split()[-1]) if self.unit.startswith("of ") else 100.0


def mean_score(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean score in percent, and that of every part where there are several."""
    figures = {"score": _mean(results)}
    parts = sorted({r.part for r in results} - {""})
    if len(parts) > 1:
        figures |= {part: _mean([r for r in results if r.part == part]) for part in parts}
    return figures


def _mean(results: Sequence[Result]) -> float:
    return 100 * sum(r.score for r in results) / len(results) if results else 0.0
