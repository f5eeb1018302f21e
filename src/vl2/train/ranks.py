"""The ranks of a training run and their collective operations.

A single process is `ONE` and needs no process group; its collectives are no-ops. Several processes are started by
torchrun, whose environment variables `join` reads. CPU tensors use gloo, CUDA tensors NCCL.
Only this file, `shard.py`, and `rank_layout.py`, `schedules.py` and `tensor_parallel.py` of `parallel` use
`torch.distributed`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
_HINT = "start with: torchrun --nproc-per-node N --no-python vl2 train ... (or vl2 finetune ...)"
_HEARTBEAT_S = 10.0  # interval between heartbeats in a section that only rank zero runs


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process's rank in a group, and the group's collectives, which all ranks must call in the same order."""

    rank: int
    size: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # None for all processes; otherwise `rank` and `size` are of this group

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.size, f"rank {self.rank} of {self.size}"

    @property
    def is_first(self) -> bool:
        """Whether this is the first rank, which prints and writes files."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its sum over the ranks, bit-identical on each, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM, group=self.group)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by its elementwise maximum over the ranks, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return tensor

    def broadcast_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by the first rank's, and return it."""
        if self.size > 1:
            dist.broadcast(tensor, group=self.group, group_src=0)
        return tensor

    def broadcast_object(self, value: T) -> T:
        """Return the first rank's value on all ranks. It must be picklable; the other ranks' values are ignored."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, group=self.group, group_src=0, device=torch.device("cpu"))
        return values[0]

    def gather_objects(self, value: T) -> list[T]:
        """Return the list of all ranks' values, in rank order, on all ranks."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return cast("list[T]", values)

    def barrier(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.size > 1:
            # dist.barrier would have to guess the CUDA device, so reduce a CPU tensor instead.
            dist.all_reduce(torch.zeros(1), group=self.group)

    def exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Tensor:
        """Send `sent[r]` consecutive rows to each rank r, and return the `received[r]` rows from each rank r in order.

        The backward pass sends gradients the other way. So if the rows of any rank require gradients, the rows of all
        ranks must, even empty ones.
        """
        exchanged: Tensor = _Exchange.apply(rows, list(sent), list(received), self.group)  # type: ignore[no-untyped-call]
        return exchanged

    def sum_parts(self, tensor: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors. The backward pass returns the sum of all ranks' gradients."""
        total: Tensor = _SumParts.apply(tensor, self.group)  # type: ignore[no-untyped-call]
        return total

    def gather_rows(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all ranks in rank order; rank r has `counts[r]` rows.

        The backward pass returns to every rank the sum of all ranks' gradients of its rows.
        """
        copies = rows.repeat(self.size, *[1] * (rows.ndim - 1))
        return self.exchange(copies, [len(rows)] * self.size, counts)

    def start_exchange(self, rows: Tensor, sent: Sequence[int], received: Sequence[int]) -> Arriving:
        """Start an exchange without gradients, and return a handle to wait for it."""
        arrived, work = _exchange(rows, list(sent), list(received), self.group, is_async=True)
        return Arriving(rows=arrived, work=work, sent=rows)


@dataclass(frozen=True, kw_only=True)
class Arriving:
    """An exchange in progress."""

    rows: Tensor
    work: dist.Work
    sent: Tensor  # keeps the sent rows alive until they have been sent

    def wait(self) -> Tensor:
        self.work.wait()
        return self.rows


class _SumParts(torch.autograd.Function):
    """A sum over ranks whose backward pass is a sum over ranks."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        return _summed(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _summed(grad, ctx.group), None


def _summed(tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, dist.ReduceOp.SUM, group=group)
    return total


class _Exchange(torch.autograd.Function):
    """An all-to-all of rows. Its backward pass is an all-to-all with sent and received counts swapped."""

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
    """A section that only rank zero runs while the others wait, for however long it takes.

    Rank zero sends a heartbeat every few seconds. Therefore the other ranks do not time out after `timeout_s` while it
    works, but fail soon if it is lost.
    """

    def __init__(self, ranks: Ranks, timeout_s: float) -> None:
        self._ranks, self._every_s = ranks, min(_HEARTBEAT_S, timeout_s / 4)
        self._next = time.monotonic() + self._every_s

    def heartbeat(self) -> None:
        """Send a heartbeat to the others if one is due. Rank zero must call this often."""
        if time.monotonic() >= self._next:
            self._ranks.max_(torch.zeros(1))
            self._next = time.monotonic() + self._every_s

    def end(self) -> None:
        """Release the others. Rank zero calls this once, at the end of the section."""
        self._ranks.max_(torch.ones(1))

    @contextmanager
    def heartbeats(self) -> Iterator[None]:
        """Send heartbeats from a thread during the `with` block, and release the others at its end.

        This is for work that cannot call `heartbeat`. The work must not use collectives itself. If it raises, the
        others are not released; they fail as soon as this rank leaves.
        """
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as executor:
            beats = executor.submit(self._send_heartbeats, is_over)
            try:
                yield
            finally:
                is_over.set()
        beats.result()
        self.end()

    def _send_heartbeats(self, is_over: threading.Event) -> None:
        while not is_over.wait(self._every_s):
            self._ranks.max_(torch.zeros(1))

    def wait(self) -> None:
        """Wait until the section has ended. All ranks except rank zero call this."""
        while not float(self._ranks.max_(torch.zeros(1))):
            pass


def on_first_rank(ranks: Ranks, timeout_s: float, work: Callable[[], T]) -> T:
    """Run `work` on the first rank while the others wait. Return its result, or raise its UserError, on all ranks.

    The result must be picklable. The work must not use collectives.
    """
    if ranks.size == 1:
        return work()
    section = RankZeroSection(ranks, timeout_s)
    outcome: list[T | UserError] = []
    if ranks.is_first:
        with section.heartbeats():
            try:
                outcome.append(work())
            except UserError as error:
                outcome.append(error)
    else:
        section.wait()
    found = ranks.broadcast_object(outcome)[0]
    if isinstance(found, UserError):
        raise found
    return found


ONE = Ranks(rank=0, size=1, device=torch.device("cpu"))


def join(device: torch.device | str, timeout_s: float = 1800.0) -> Ranks:
    """Join the process group that torchrun has started, or return a single rank without torchrun.

    `device` is a name for `find_device`. A collective that waits longer than `timeout_s` for another rank fails. Raise
    UserError if the environment is incomplete or invalid, or if the device does not exist.
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
    """Return a sentence if an error means that another rank has died or does not answer, otherwise None."""
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
    """Leave the process group. This does nothing if `join` created none."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def num_started() -> int:
    """Return the number of processes that torchrun has started, without joining them.

    Raise UserError if the environment is incomplete or invalid.
    """
    place = _read_environment(os.environ)
    return 1 if place is None else place[1]


def _read_environment(environment: Mapping[str, str]) -> tuple[int, int, int] | None:
    """Return the rank, the number of ranks and the local rank; None if none of them is set."""
    # MASTER_ADDR alone means nothing, because clusters set it for every job.
    if not any(name in environment for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")):
        return None
    missing = [name for name in _VARIABLES if not environment.get(name)]
    if missing:
        raise UserError(f"torchrun sets {', '.join(_VARIABLES)}; missing: {', '.join(missing)}; {_HINT}")
    numbers = {name: environment[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    for name, value in numbers.items():
        if not value.isdecimal():
            raise UserError(f"{name} must be a non-negative number, got {value!r}; {_HINT}")
    rank, size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank >= size:
        raise UserError(f"RANK must be in 0..WORLD_SIZE - 1 ({size - 1}), got {rank}; {_HINT}")
    return rank, size, local_rank


def find_device(name: torch.device | str, local_rank: int = 0) -> torch.device:
    """Return the device of a process by name: auto (CUDA if available), cpu, cuda or cuda:N.

    "cuda" is the device with the process's local rank. Raise UserError if the device does not exist.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError:
        raise UserError(f"the device must be auto, cpu, cuda or cuda:N, got {name}") from None
    if kind.type == "cpu":
        return kind
    if kind.type != "cuda":
        raise UserError(f"the device must be cpu or cuda, got {kind.type}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = local_rank if kind.index is None else kind.index
    if index >= count:
        raise UserError(f"there is no device cuda:{index}, this machine has {count}: start fewer processes or use cpu")
    return torch.device("cuda", index)
