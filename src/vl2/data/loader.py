"""Load the packs of a plan: for every step, this rank's packs as tensors.

Worker threads prepare packs ahead of the step that needs them. Threads suffice because decoding, resizing and
tokenizing release the GIL; unlike processes they need not copy a pack's tiles (18 MB for ten of 384 px) and nothing
has to survive a fork. The threads live as long as the iteration.

A record that cannot be read, or whose counts differ from the index, is reported in `problems` and replaced by
padding. The plan does not change, so all ranks still agree on it and training continues.
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
    """How packs are prepared. No option here changes which samples a pack holds."""

    num_workers: int = 0  # threads; 0 prepares every pack on demand
    read_ahead: int = 8  # packs prefetched beyond the current step
    is_padded: bool = True  # pad to the sequence length; otherwise a pack is as long as its planned samples
    mask_prompt: bool = True  # train on answers only, otherwise on all text
    is_pairs: bool = False  # each record is two samples, with the chosen answer and then with the rejected one
    note: Callable[[Record, Sample], Any] | None = None  # computes each sample's entry of `Packed.notes`

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.read_ahead < 0:
            raise UserError(
                f"num_workers and read_ahead must not be negative, got {self.num_workers} and {self.read_ahead}"
            )


@dataclass(frozen=True, kw_only=True)
class LoadedStep:
    """The data of one step for one rank: its own packs, and the division of all packs among the ranks."""

    number: int
    packs: tuple[Packed, ...]  # one fewer than `division.num_rounds` if this rank has no pack in the last round
    division: Division
    num_lost: int = 0  # records of these packs that were replaced by padding


@dataclass(frozen=True, kw_only=True)
class _PreparedPack:
    packed: Packed
    problems: tuple[LostRecord, ...]


_StartedStep = tuple[StepPlan, Division, list[Future[_PreparedPack]]]


class Loader:
    """An endless iterator over the steps of a plan. Its state is the same on every rank."""

    def __init__(
        self,
        plan: PackPlan,
        stores: Mapping[str, RecordStore],
        processor: Processor,
        rank: int = 0,
        num_ranks: int = 1,
        options: LoaderOptions | None = None,
    ) -> None:
        """Raise UserError if a store that the plan draws from is missing, or if `rank` is out of range."""
        if not 0 <= rank < num_ranks:
            raise UserError(f"rank must be in 0..{num_ranks - 1}, got {rank}")
        missing = {source.name for source in plan.sources} - set(stores)
        if missing:
            raise UserError(f"the plan draws from {sorted(missing)[0]!r}, the stores are {', '.join(sorted(stores))}")
        self.plan = plan
        self.rank = rank
        self.num_ranks = num_ranks
        self.problems: list[LostRecord] = []  # of the steps yielded so far, in order
        self._stores = stores
        self._processor = processor
        self._options = options or LoaderOptions()
        self._position = Position()
        self._number = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last step yielded; packs prefetched beyond it do not count."""
        place = {"window": self._position.window, "pack": self._position.pack, "step": self._number}
        return {**place, "plan": self.plan.fingerprint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state, on any number of ranks. Raise UserError if it belongs to another plan."""
        keys = ("window", "pack", "step")
        if set(state) != {*keys, "plan"} or not all(isinstance(state[key], int) for key in keys):
            raise UserError(f"a loader's state must have {', '.join(keys)} and plan, got {', '.join(map(str, state))}")
        if state["plan"] != self.plan.fingerprint:
            raise UserError("the state belongs to another plan: data, mixture, seed or packing have changed since")
        self._position = Position(window=state["window"], pack=state["pack"])
        self._number = state["step"]

    def __iter__(self) -> Iterator[LoadedStep]:
        """Yield the steps from the current position on."""
        if not self._options.num_workers:
            yield from self._steps(lambda pack: _completed(self._prepare_pack(pack)))
            return
        executor = ThreadPoolExecutor(self._options.num_workers, thread_name_prefix="vl2-loader")
        try:
            with closing(self._steps(lambda pack: executor.submit(self._prepare_pack, pack))) as steps:
                yield from steps
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _steps(self, start: Callable[[Pack], Future[_PreparedPack]]) -> Generator[LoadedStep, None, None]:
        planned = self.plan.steps(self._position)
        started: deque[_StartedStep] = deque()
        ahead = self._options.read_ahead if self._options.num_workers else 0
        while True:
            # Start the current step, then whole steps until enough packs are prefetched. The number of steps is
            # limited too: a rank that gets no packs at all would otherwise plan ahead forever.
            while not started or (len(started) <= ahead and _num_ahead(started) < ahead):
                step = next(planned)
                division = step.divide(self.num_ranks)
                started.append((step, division, [start(step.packs[i]) for i in division.ranks[self.rank]]))
            step, division, futures = started.popleft()
            made = [future.result() for future in futures]
            problems = [problem for one in made for problem in one.problems]
            self.problems += problems
            # Advance before yielding: the caller may save the state while it holds the step.
            self._position, number, self._number = step.end, self._number, self._number + 1
            packs = tuple(one.packed for one in made)
            yield LoadedStep(number=number, packs=packs, division=division, num_lost=len(problems))

    def _prepare_pack(self, pack: Pack) -> _PreparedPack:
        samples: list[Sample] = []
        categories: list[str] = []
        notes: list[Any] = []
        problems: list[LostRecord] = []
        for entry in pack.entries:
            try:
                record = self._stores[entry.source][entry.record]
                encoded = self._encode_checked(record, entry)
                if self._options.note is not None:
                    notes += [self._options.note(record, sample) for sample in encoded]
                samples += encoded
                categories += [record.category] * len(encoded)
            except MemoryError:
                raise
            except Exception as error:  # a damaged record may raise anything; it affects this record only
                problems.append(LostRecord(source=entry.source, record=entry.record, message=one_line(error)))
        length = self.plan.options.packing.seq_len if self._options.is_padded else pack.num_tokens
        packed = pack_samples(samples, self._processor, length, categories, notes)
        return _PreparedPack(packed=packed, problems=tuple(problems))

    def _encode_checked(self, record: Record, entry: PackEntry) -> list[Sample]:
        """Encode one record. Raise UserError if its tokens or tiles differ from the planned counts."""
        records = (record, record.with_rejected()) if self._options.is_pairs else (record,)
        samples = [self._encode(one) for one in records]
        num_tokens, num_tiles = sum(map(len, samples)), sum(sample.num_views for sample in samples)
        if (num_tokens, num_tiles) != (entry.num_tokens, entry.num_tiles):
            raise UserError(
                f"record {record.id} has {num_tokens} tokens and {num_tiles} tiles, the index says "
                f"{entry.num_tokens} and {entry.num_tiles}: does the record state a wrong image size?"
            )
        return samples

    def _encode(self, record: Record) -> Sample:
        return self._processor.encode(
            record.to_turns(),
            train=True,
            mask_prompt=self._options.mask_prompt,
            spells_answers=record.category in self._processor.character_level,
            name=record.id,
        )


def _num_ahead(started: deque[_StartedStep]) -> int:
    """Count the packs in preparation for the steps after the current one."""
    return sum(len(futures) for _, _, futures in islice(started, 1, None))


def _completed(made: _PreparedPack) -> Future[_PreparedPack]:
    future: Future[_PreparedPack] = Future()
    future.set_result(made)
    return future
