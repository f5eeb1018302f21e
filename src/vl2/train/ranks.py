"""Ranks: the processes that train together, and the few things that they tell one another.

One process is `ONE` and needs no process group: all sums are then over itself. More are started by torchrun, whose
environment `join` reads. Tensors on the CPU travel by gloo, tensors on CUDA devices by NCCL.
Only this file, `shard` and `layout` and `pipeline` of `parallel` know that PyTorch has process groups.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vl2.errors import UserError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_HINT = "start with: torchrun --nproc-per-node N --no-python vl2 train ..."
_HEARTBEAT_S = 10.0  # between two heartbeats of a section that only rank zero runs


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among all. Every method but the properties must be called by all ranks, in the same order."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # None: all that were started; else some of them, and `rank` is among these

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} of {self.size}"

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over the ranks, the same bits on each, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self.group)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its largest values over the ranks and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by the first rank's and return it."""
        if self.size > 1:
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def broadcast_object(self, value: T) -> T:
        """Return the first rank's value on all; it must be one that pickle takes. The others' values are ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0, device=torch.device("cpu"))
        return values[0]

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order, on all."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return cast("list[T]", values)

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        if self.size > 1:
            # Not dist.barrier: on CUDA it guesses a device before the first product has chosen one.
            dist.all_reduce(torch.zeros(1), group=self.group)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send `sent[r]` rows to rank r, in this order, and return the `received[r]` rows of each rank, in theirs.

        Gradients travel the other way. So where any rank's rows require gradients, those of all must, empty ones too.
        """
        exchanged: Tensor = _Exchange.apply(rows, list(sent), list(received), self.group)  # type: ignore[no-untyped-call]
        return exchanged

    def start_exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Arriving:
        """Begin an exchange without gradients, to be waited for where the rows are needed."""
        arrived, work = _exchange(rows, list(sent), list(received), self.group, is_async=True)
        return Arriving(rows=arrived, work=work, sent=rows)


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """Rows on their way."""

    rows: Tensor
    work: dist.Work
    sent: Tensor  # kept until they have left

    def wait(self) -> Tensor:
        self.work.wait()
        return self.rows


class _Exchange(torch.autograd.Function):
    """An all-to-all of rows; backward it is the same one with the counts exchanged."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _exchange(rows, sent, received, group, is_async=False)[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad, ctx.received, ctx.sent, ctx.group, is_async=False)[0], None, None, None


def _exchange(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None, *, is_async: bool
) -> tuple[Tensor, Any]:
    assert sum(sent) == len(rows), f"{sum(sent)} rows to send, {len(rows)} given"
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    work = dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group, async_op=is_async)
    return arrived, work


class RankZeroSection:
    """A section that only rank zero runs while the others wait, however long it takes.

    Rank zero sends a heartbeat every few seconds. So no rank gives up after `timeout_s` while it is at work, and all
    fail soon where it is lost.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self._ranks, self._every_s = ranks, min(_HEARTBEAT_S, timeout_s / 4)
        self._next = time.monotonic() + self._every_s

    def heartbeat(self) -> None:
        """Send a heartbeat to the others if one is due. Rank zero calls it often."""
        if time.monotonic() >= self._next:
            self._ranks.max_(torch.zeros(1))
            self._next = time.monotonic() + self._every_s

    def end(self) -> None:
        """Release the others. Rank zero calls it once, at the end of the section."""
        self._ranks.max_(torch.ones(1))

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Send heartbeats from a thread, for work that cannot call `heartbeat`, and release the others at its end.

        The work must not communicate with other ranks itself. Where it fails, the others are not released: they fail
        as soon as this rank leaves.
        """
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            beats = executor.submit(self._beat_until, is_over)
            try:
                yield
            finally:
                is_over.set()
        beats.result()
        self.end()

    def _beat_until(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._every_s):
            self._ranks.max_(torch.zeros(1))

    def wait(self) -> None:
        """Return when the section has ended. The other ranks call it."""
        while not float(self._ranks.max_(torch.zeros(1))):
            pass


ONE = Ranks(rank=0, size=1, device=torch.device("cpu"))


def join(device: torch.device | str, timeout_s: float = 1800.0) -> Ranks:
    """Join the ranks that torchrun has started, or be the only one where it has not.

    The device is as `find_device` takes it. A collective that waits longer than `timeout_s` for another rank fails.
    UserError if the environment is incomplete or wrong, or if there is no such device.
    """
    place = _read_environment(os.environ)
    if place is None:
        return Ranks(rank=0, size=1, device=find_device(device))
    rank, size, local_rank = place
    local = find_device(device, local_rank)
    if local.type == "cuda":
        torch.cuda.set_device(local)
    if size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if local.type == "cuda" else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), rank=rank, world_size=size)
        except (dist.DistError, ValueError) as error:
            first_line = str(error).strip().split("\n")[0]
            raise UserError(f"rank {rank} of {size} could not join the others: {first_line}") from None
    return Ranks(rank=rank, size=size, device=local)


def why_lost(error: BaseException) -> str | None:
    """Return in a sentence what an error says of other ranks: that one has gone, or does not answer; else None."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, dist.DistError) or "gloo/transport" in text or "NCCL" in text:
            if any(word in text.lower() for word in ("timed out", "timeout")):
                return "another rank has not answered in time: it hangs, or its machine does"
            return "the connection to another rank has broken: it has died, or its machine has"
        seen = seen.__cause__ or seen.__context__
    return None


def leave() -> None:
    """End what `join` began. Harmless where it began nothing."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def num_started() -> int:
    """Return how many processes torchrun has started, without joining them. UserError as of `join`."""
    place = _read_environment(os.environ)
    return 1 if place is None else place[1]


def _read_environment(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Return rank, number of ranks and rank on this machine; None where none of them is given."""
    # MASTER_ADDR alone says nothing: clusters set it for every job.
    if not any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return None
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise UserError(f"torchrun sets {', '.join(_VARIABLES)}; missing: {', '.join(missing)}; {_HINT}")
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise UserError(f"{name} must be a number that is not negative, got {value!r}; {_HINT}")
    rank, size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank >= size:
        raise UserError(f"RANK must be in 0..WORLD_SIZE - 1 ({size - 1}), got {rank}; {_HINT}")
    return rank, size, local_rank


def find_device(name: torch.device | str, local_rank: int = 0) -> torch.device:
    """Return the device of a process by name: auto, which takes CUDA where it is, cpu, cuda or cuda:N.

    "cuda" is that of the process's number on this machine. UserError where there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError:
        raise UserError(f"the device of training must be auto, cpu, cuda or cuda:N, got {name}") from None
    if kind.type == "cpu":
        return kind
    if kind.type != "cuda":
        raise UserError(f"the device of training must be cpu or cuda, got {kind.type}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = local_rank if kind.index is None else kind.index
    if index >= count:
        raise UserError(f"there is no device cuda:{index}, this machine has {count}: start fewer processes or use cpu")
    return torch.device("cuda", index)
