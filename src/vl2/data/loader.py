"""The plan with its data: for every step, this rank's packs as tensors.

Packs are made ahead of the step that needs them by threads, not processes: decoding, resizing and tokenizing leave
the interpreter's lock, a pack's tiles (18 MB for ten of 384 px) need not be copied from one process to another, and
nothing has to survive a fork. The threads start with the iteration and end with it.

A record that cannot be read, or that is not what the index says, is reported in `problems` and its place becomes
padding. The plan stays as it is, so the ranks still agree, and the run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

from vl2.data.index import LostRecord, RecordStore, one_line
from vl2.data.pack import Packed, pack_samples
from vl2.data.pack_plan import Division, Pack, PackEntry, PackPlan, Position, StepPlan
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.process.processor import Processor
from vl2.process.sample import Sample


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How packs are made; nothing here changes which samples they hold."""

    num_workers: int = 0  # threads; 0 makes every pack when it is asked for
    read_ahead: int = 8  # packs made or in the making beyond the step in hand
    is_padded: bool = True  # to the sequence length; else a pack is as long as its samples were planned
    mask_prompt: bool = True  # train on answers only, else on all text
    note: Callable[[Record, Sample], Any] | None = None  # what `Packed.notes` shall say of each sample

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.read_ahead < 0:
            raise UserError(
                f"num_workers and read_ahead must not be negative, got {self.num_workers} and {self.read_ahead}"
            )


@dataclass(frozen=True, kw_only=True)
class LoadedStep:
    """One step as a rank sees it: its own packs, and who has what."""

    number: int
    packs: tuple[Packed, ...]  # fewer than `division.num_rounds` where this rank sits the last round out
    division: Division
    num_lost: int = 0  # records of these packs that became padding


@dataclass(frozen=True, kw_only=True)
class _Made:
    packed: Packed
    problems: tuple[LostRecord, ...]


_Started = tuple[StepPlan, Division, list[Future[_Made]]]


class Loader:
    """An endless iterator over steps. Its state is that of the plan and is the same on every rank."""

    def __init__(
        self,
        plan: PackPlan,
        stores: Mapping[str, RecordStore],
        processor: Processor,
        rank: int = 0,
        num_ranks: int = 1,
        options: LoaderOptions | None = None,
    ) -> None:
        """UserError if the plan needs a store that is not given, or the rank is not one of `num_ranks`."""
        if not 0 <= rank < num_ranks:
            raise UserError(f"rank must be in 0..{num_ranks - 1}, got {rank}")
        missing = {source.name for source in plan.sources} - set(stores)
        if missing:
            raise UserError(f"the plan draws from {sorted(missing)[0]!r}, the stores are {', '.join(sorted(stores))}")
        self.plan = plan
        self.rank = rank
        self.num_ranks = num_ranks
        self.problems: list[LostRecord] = []  # of the steps handed out, in their order
        self._stores = stores
        self._processor = processor
        self._options = options or LoaderOptions()
        self._position = Position()
        self._number = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place behind the last step handed out, whatever has been made ahead of it."""
        place = {"window": self._position.window, "pack": self._position.pack, "step": self._number}
        return {**place, "plan": self.plan.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, on any number of ranks. UserError if it is of another plan."""
        keys = ("window", "pack", "step")
        if set(state) != {*keys, "plan"} or not all(isinstance(state[key], int) for key in keys):
            raise UserError(f"a loader's state must have {', '.join(keys)} and plan, got {', '.join(map(str, state))}")
        if state["plan"] != self.plan.fingerprint:
            raise UserError("the state is of another plan: data, mixture, seed or packing have changed since")
        self._position = Position(window=state["window"], pack=state["pack"])
        self._number = state["step"]

    def __iter__(self) -> Iterator[LoadedStep]:
        """Yield the steps from the current place on."""
        if not self._options.num_workers:
            yield from self._steps(lambda pack: _done(self._make(pack)))
            return
        executor = ThreadPoolExecutor(self._options.num_workers, thread_name_prefix="vl2-loader")
        try:
            with closing(self._steps(lambda pack: executor.submit(self._make, pack))) as steps:
                yield from steps
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _steps(self, start: Callable[[Pack], Future[_Made]]) -> Generator[LoadedStep, None, None]:
        planned = self.plan.steps(self._position)
        started: deque[_Started] = deque()
        ahead = self._options.read_ahead if self._options.num_workers else 0
        while True:
            # The step in hand, and then whole steps until enough packs are on their way. Steps are limited as well:
            # a rank beyond the packs of a step would plan on for ever.
            while not started or (len(started) <= ahead and _num_ahead(started) < ahead):
                step = next(planned)
                division = step.divide(self.num_ranks)
                started.append((step, division, [start(step.packs[i]) for i in division.ranks[self.rank]]))
            step, division, futures = started.popleft()
            made = [future.result() for future in futures]
            problems = [problem for one in made for problem in one.problems]
            self.problems += problems
            # Moved on before the step is handed out: whoever holds the step may save the state.
            self._position, number, self._number = step.end, self._number, self._number + 1
            packs = tuple(one.packed for one in made)
            yield LoadedStep(number=number, packs=packs, division=division, num_lost=len(problems))

    def _make(self, pack: Pack) -> _Made:
        samples: list[Sample] = []
        categories: list[str] = []
        notes: list[Any] = []
        problems: list[LostRecord] = []
        for entry in pack.entries:
            try:
                record = self._stores[entry.source][entry.record]
                sample = self._sample(record, entry)
                if self._options.note is not None:
                    notes.append(self._options.note(record, sample))
                samples.append(sample)
                categories.append(record.category)
            except MemoryError:
                raise
            except Exception as error:  # whatever a damaged record raises, it concerns this record only
                problems.append(LostRecord(source=entry.source, record=entry.record, message=one_line(error)))
        length = self.plan.options.packing.seq_len if self._options.is_padded else pack.num_tokens
        packed = pack_samples(samples, self._processor, length, categories, notes)
        return _Made(packed=packed, problems=tuple(problems))

    def _sample(self, record: Record, entry: PackEntry) -> Sample:
        """Encode one record. UserError if it is not what the plan was made for."""
        sample = self._encode(record)
        if (len(sample), len(sample.tiles)) != (entry.num_tokens, entry.num_tiles):
            raise UserError(
                f"record {record.id} has {len(sample)} tokens and {len(sample.tiles)} tiles, the index says "
                f"{entry.num_tokens} and {entry.num_tiles}: is the size of an image stated wrongly?"
            )
        return sample

    def _encode(self, record: Record) -> Sample:
        return self._processor.encode(
            record.to_turns(),
            train=True,
            mask_prompt=self._options.mask_prompt,
            spells_answers=record.category in self._processor.character_level,
            name=record.id,
        )


def _num_ahead(started: deque[_Started]) -> int:
    """Count the packs on their way for the steps after the one in hand."""
    return sum(len(futures) for _, _, futures in islice(started, 1, None))


def _done(made: _Made) -> Future[_Made]:
    future: Future[_Made] = Future()
    future.set_result(made)
    return future
