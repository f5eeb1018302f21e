"""Base class of synthetic data sources, and `generate`, which runs a source in one or several processes.

A source is a function from (index, seed) to a record. The order and the bytes of the records depend only on the source,
its settings and the seed, not on the number of processes. (Drawn text also depends on the fonts of the machine.)
"""

from __future__ import annotations

import abc
import multiprocessing
import random
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar

from vl2.data.ray_map import MapBackend, map_in_order
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.progress import LINE_EVERY_S, ProgressDisplay
from vl2.synth.draft import Draft

RAY_CHUNKS = 256  # number of chunks that are submitted to a Ray cluster at once
CHUNK = 8  # number of records per task of a process, enough to make the cost of messages negligible
Outcome = Record | str  # a record, or the reason why it was dropped
LANGUAGES = ("en", "zh")  # languages of the questions
FORMS = ("mixed", "worked", "concise")  # form of solutions: either, with the steps, or the answer only
# The minimum of each setting, for every source that has it. Below it there would be nothing to draw or to ask.
LEAST = {
    "max_chars_en": 2, "max_chars_zh": 2, "max_columns": 2, "max_distortions": 0, "max_objects": 1, "max_of_kind": 1,
    "max_pages": 2, "max_pictures": 2, "max_rows": 3, "max_side_px": 64, "min_chars_en": 1, "min_side_px": 64,
    "turns": 1,
}  # fmt: skip
SHARES = {"handwritten", "photographed", "stamped"}  # settings that are the share of pictures with that property
# The licence of records made from the user's own texts or tables, whose terms only the user knows. The catalog of
# public data sets uses the same word.
UNKNOWN_LICENCE = "check"


class Dropped(Exception):
    """Raised for a record that cannot be made, such as a plot whose code fails. `generate` counts it and continues."""


@dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """A source of synthetic records. Subclasses add their settings as fields, and implement `draft`."""

    name: ClassVar[str]
    category: ClassVar[str]
    tasks_known: ClassVar[tuple[str, ...]]

    licence: str = ""  # licence of the records, for example that of given texts; empty uses `own_licence`
    tasks: tuple[str, ...] = ()  # kinds of questions to ask; empty means all

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in self.tasks_known:
                raise UserError(f"tasks of {self.name} are {', '.join(self.tasks_known)}, got {task!r}")
        _check_settings(self.name, vars(self))

    @abc.abstractmethod
    def draft(self, rng: random.Random) -> Draft:
        """Make one example, using `rng` as the only source of randomness. Raise Dropped if it cannot be made."""

    def make(self, index: int, seed: int) -> Record:
        """Return record `index`. The same settings, index and seed give the same record."""
        return self.finish(self.draft(rng_for(seed, self.name, index)), index, seed)

    def finish(self, draft: Draft, index: int, seed: int) -> Record:
        record_id, licence = f"{self.name}-{seed}-{index:07d}", self.licence or self.own_licence()
        return draft.record(id=record_id, source=self.name, category=self.category, licence=licence)

    def own_licence(self) -> str:
        """Return the licence of the records: CC0 if all content is generated, otherwise that of the given data."""
        return "CC0-1.0"

    def builtin_inputs(self) -> tuple[str, ...]:
        """Return the settings for real texts or tables that are not set, so that the few built-in ones are drawn."""
        return ()

    def pick_task(self, rng: random.Random) -> str:
        return rng.choice(self.tasks or self.tasks_known)


def _check_settings(name: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError if a setting that several sources share has an invalid value."""
    languages = settings.get("languages", LANGUAGES)
    if not languages or not set(languages) <= set(LANGUAGES):
        given = ", ".join(languages) or "none"
        raise UserError(f"languages of {name} are {' and '.join(LANGUAGES)}, or one of them, got {given}")
    if settings.get("form", FORMS[0]) not in FORMS:
        raise UserError(f"form of {name} is one of {', '.join(FORMS)}, got {settings['form']!r}")
    for setting in SHARES & settings.keys():
        if not 0 <= settings[setting] <= 1:
            raise UserError(f"{setting} of {name} must be a share from 0 to 1, got {settings[setting]}")
    for setting, least in LEAST.items():
        if settings.get(setting, least) < least:
            raise UserError(f"{setting} of {name} must be at least {least}, got {settings[setting]}")


@dataclass
class GenerationTally:
    """Counts of records made and dropped, which `generate` updates while it runs."""

    made: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # number of dropped records by reason

    def count(self, outcome: Outcome) -> None:
        if isinstance(outcome, str):
            self.dropped[outcome] = self.dropped.get(outcome, 0) + 1
        else:
            self.made += 1


def rng_for(seed: int, name: str, index: int) -> random.Random:
    """Return the random generator of one record. Python hashes a text seed by SHA-512, so machines agree."""
    return random.Random(f"{seed}/{name}/{index}")


def generate(
    source: Source,
    count: int,
    seed: int = 0,
    processes: int = 1,
    *,
    start: int = 0,
    tally: GenerationTally | None = None,
    progress: bool = False,
    on: MapBackend = "local",
) -> Iterator[Record]:
    """Yield the records `start` to `start + count - 1` in order, without the dropped ones.

    `start` resumes an interrupted run. `progress` shows a bar on standard error. With on="ray" a Ray cluster makes the
    records, which are the same if its machines have the same fonts and files. Raise UserError if `count` is negative or
    `processes` is below 1, or if a process ends abruptly.
    """
    if count < 0 or processes < 1:
        raise UserError(f"count must be at least 0 and processes at least 1, got {count} and {processes}")
    tally = GenerationTally() if tally is None else tally
    chunks = [range(at, min(at + CHUNK, start + count)) for at in range(start, start + count, CHUNK)]
    made: Iterator[Record | str]
    if on == "ray":
        made = chain.from_iterable(map_in_order(_MakeChunk(source, seed), chunks, on, RAY_CHUNKS))
    else:
        made = _in_processes(source, seed, chunks, processes) if processes > 1 else _here(source, seed, chunks)
    with ProgressDisplay(count, quiet=not progress, is_kept=True) as display:
        for outcome in made:
            tally.count(outcome)
            display.done += 1
            dropped = sum(tally.dropped.values())
            name = f"{source.name}, {dropped} dropped" if dropped else source.name
            line_every_s = 0.0 if display.done == count else LINE_EVERY_S
            display.show(name, line=f"{name}: {display.done} of {count}", line_every_s=line_every_s)
            if isinstance(outcome, Record):
                yield outcome


@dataclass(frozen=True)
class _MakeChunk:
    """The function that is sent to a Ray cluster; it makes the records of one chunk of indices."""

    source: Source
    seed: int

    def __call__(self, indices: range) -> list[Outcome]:
        return _make_chunk(self.source, self.seed, indices)


def _make_chunk(source: Source, seed: int, indices: range) -> list[Outcome]:
    return [_attempt(source, seed, index) for index in indices]


def _attempt(source: Source, seed: int, index: int) -> Outcome:
    try:
        return source.make(index, seed)
    except Dropped as reason:
        return str(reason)


def _here(source: Source, seed: int, chunks: list[range]) -> Iterator[Outcome]:
    for indices in chunks:
        for index in indices:
            yield _attempt(source, seed, index)


def _in_processes(source: Source, seed: int, chunks: list[range], processes: int) -> Iterator[Outcome]:
    # Processes are spawned, because forking a process whose libraries run threads can hang. The queue is short, so that
    # with a slow consumer only a few chunks of images wait in memory.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    waiting: deque[Future[list[Outcome]]] = deque()
    try:
        for indices in chunks:
            waiting.append(pool.submit(_make_chunk, source, seed, indices))
            if len(waiting) > 2 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"a process of {source.name} ended abruptly: too little memory, or a main program that cannot be imported"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
