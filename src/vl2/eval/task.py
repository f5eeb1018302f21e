"""The types of a benchmark: a task with its items, the protocols that ask and score them, and results.

Protocols are named `paper`, `vlmevalkit` or `lmms-eval`, `official` for the benchmark's own program, or `vl2` for this
project's own tasks. The score of an item is in 0..1. A metric maps results to named figures, the headline figure first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.public_data import HUB, Dataset, fetch
from vl2.process.conversation import Turn

Json = Any
REFUSED = "refused"  # the finish reason of a result whose item could not be asked


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question with its gold answers."""

    id: str
    question: str
    images: tuple[Any, ...] = ()  # any image source of the processor: bytes, a path or an image
    gold: Json  # the gold answer as the task's scorer expects it, in JSON values
    options: tuple[str, ...] = ()  # of a multiple-choice question, A first
    part: str = ""  # a category that is also reported separately
    cluster: str = ""  # dependent items, such as those of one image, share a cluster, which the bootstrap draws whole
    notes: Mapping[str, Json] = field(default_factory=dict)  # additional data for this task's prompts and scorers


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """An item of the data that a run does not ask, with the reason as a phrase that follows "N items"."""

    why: str
    is_of_other_split: bool = False  # a run without it is still complete
    comes_with_whole: bool = False  # included with `DataSource.whole`


OTHER_SPLIT = LeftOut(why="of other splits", is_of_other_split=True)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The score of an answer, and the text that was read from it."""

    value: float
    read: str = ""
    is_undecided: bool = False  # the harness would ask a judge; `value` is the score without one
    measures: Mapping[str, float] = field(default_factory=dict)  # further values of the answer, for the task's metric


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one item, a line of `results.jsonl`. It depends on the item and the model alone."""

    id: str
    part: str
    cluster: str
    prompt: str
    answer: str
    read: str
    gold: Json
    score: float
    is_undecided: bool
    finish_reason: str  # stop, length, or refused if it could not be asked; `read` then has the reason
    prompt_tokens: int
    completion_tokens: int
    measures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class JudgeRule:
    """The prompt and scoring of a judge for answers that the rules cannot read."""

    prompt: Callable[[Item, str], str]
    score: Callable[[Item, str], Score]  # reads the judge's reply


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The way in which a harness asks the items of a task and scores the answers."""

    ask: Callable[[Item], list[Turn]]
    score: Callable[[Item, str], Score]
    says: str  # a description of the scoring, in a sentence or two
    max_new_tokens: int = 512
    max_tiles: int | None = None  # the most local tiles, if the benchmark allows more than the model's default of nine
    judge: JudgeRule | None = None
    metric: Metric | None = None  # overrides the task's metric if the harness uses another one


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """The location of a task's data, and the part of the data to use."""

    data: Path | None = None  # a folder, or `hub` for the task's public dataset on the hub
    split: str | None = None
    fonts: Path | None = None  # a folder of fonts for drawn texts
    whole: bool = False  # include items that are kept for training

    def folder(self, task: Task) -> Path:
        """Return the folder of a task's data: the first of `task.folders` that exists in `data`, else `data` itself.

        Raise UserError if there is no such data.
        """
        if self.data is None:
            raise UserError(f"{task.name} reads local files: say where with --data; it {task.layout}")
        if str(self.data) == HUB:
            if task.hub is None:
                raise UserError(f"{task.name} has no dataset on the hub: say where its files are with --data")
            return fetch(task.hub, self.part(task))
        if not self.data.exists():
            raise UserError(f"--data {self.data} is not there")
        return next((path for name in task.folders if (path := self.data / name).is_dir()), self.data)

    def part(self, task: Task) -> str:
        """Return the split of a task to read: the given one or the task's default."""
        return self.split or task.split


Metric = Callable[[Sequence[Result]], dict[str, float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """One benchmark. Tasks compare by identity."""

    name: str
    title: str  # a description in one sentence
    layout: str  # the files that it reads, or how it is drawn, as a phrase after "it"
    read: Callable[[Task, DataSource], Iterator[Item | LeftOut]]
    protocols: Mapping[str, Protocol]
    split: str = ""  # the default split, as its files name it
    published_by: str | None = None  # the protocol of the published figure
    published: str | None = None  # the column of the figure in vl2.eval.published
    published_split: str | None = None  # the split of the published figure, if it is not the default one
    metric: Metric
    folders: tuple[str, ...] = ()  # possible names of its folder in a folder of several benchmarks
    hub: Dataset | None = None  # its public copy
    unit: str = "%"
    count: int | None = None  # the default number of drawn items; None if the items come from files
    has_whole: bool = False  # a part of the data is kept for training and included with `DataSource.whole` only
    is_mean: bool = False  # the headline figure is the mean score, in addition to which the metric may give others
    keeps_clusters: bool = False  # an item counts only together with the other items of its cluster
    # Merges the results of the items of each question; the headline figure is the mean of the merged scores.
    merge: Callable[[Sequence[Result]], list[Result]] | None = None

    @property
    def is_drawn(self) -> bool:
        return self.count is not None

    def protocol(self, name: str | None = None) -> tuple[str, Protocol]:
        """Return the name and the protocol; the default is the one of the published figure, or else the first.

        Raise UserError for an unknown name.
        """
        name = name or self.published_by or next(iter(self.protocols))
        if name not in self.protocols:
            raise UserError(f"protocols of {self.name} are {', '.join(self.protocols)}, got {name}")
        return name, self.protocols[name]

    def items(self, source: DataSource) -> Iterator[Item]:
        return (found for found in self.read(self, source) if isinstance(found, Item))

    def metric_of(self, name: str) -> Metric:
        """Return the metric of a protocol, by default the task's."""
        return self.protocols[name].metric or self.metric

    @property
    def scale(self) -> float:
        """The best possible figure."""
        return float(self.unit.split()[-1]) if self.unit.startswith("of ") else 100.0


def mean_score(results: Sequence[Result]) -> dict[str, float]:
    """Return the mean score in percent, and the mean of every part if there are several."""
    figures = {"score": _mean(results)}
    parts = sorted({r.part for r in results} - {""})
    if len(parts) > 1:
        figures |= {part: _mean([r for r in results if r.part == part]) for part in parts}
    return figures


def _mean(results: Sequence[Result]) -> float:
    return 100 * sum(r.score for r in results) / len(results) if results else 0.0


def mean_measure(results: Sequence[Result], name: str) -> float | None:
    """Return the mean of a measure over the results that have it, or None if none has it.

    Items that could not be asked count as 0.
    """
    found = [result.measures[name] for result in results if name in result.measures]
    refused = sum(result.finish_reason == REFUSED for result in results)
    return sum(found) / (len(found) + refused) if found else None
