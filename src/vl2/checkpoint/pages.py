"""Memory-map files, and advise the system about their pages. Offsets and sizes are in bytes.

A tensor that views a mapped file is not a copy: processes share its pages, and the system may reclaim them. A page is
read from the file at the first access, unless it was prefetched. Writes to such a tensor stay in this process and never
reach the file. The file must not be truncated while it is mapped, because an access beyond its end kills the process.

All active weights are read for every token, at the speed of memory. With pages of 4 KiB, address translation takes a
part of that time. With huge pages of 2 MiB, one core reads 20 to 25 % faster from anonymous memory and two to three
times as fast from a mapped file, and newly allocated memory is filled faster. Only Linux offers huge pages.

Advice is optional: on a system that lacks or refuses it, the calls do nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from vl2.checkpoint.safetensors_file import StoredTensor
from vl2.errors import UserError

HUGE_PAGE = 2 << 20
NUM_SAMPLES = 8  # huge pages that `lies_in_huge_pages` tests of a byte range
# Linux's advice to read these pages now, in one call. Python has no name for it, and kernels before 5.14 refuse it.
MADV_POPULATE_READ = 22
# Locks pages that are in memory and others when they arrive. A plain mlock would fault the pages of a private writable
# map as if they were written, and so copy them.
MLOCK_ONFAULT = 1
MAPPINGS = Path("/proc/self/smaps")  # Linux lists here the maps of this process with their page statistics


class MappedFile:
    """A file that is mapped into the address space of this process. Raise UserError if it cannot be mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copy on write: a change of a layer in place (merging an adapter) must neither fail nor alter the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be mapped into memory: {error}") from None

    @property
    def address(self) -> int:
        return torch.frombuffer(self._map, dtype=torch.uint8, count=1).data_ptr()

    @property
    def nbytes(self) -> int:
        return len(self._map)

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Return a tensor that views the file; if it is not aligned for its type, return a copy."""
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=stored.nbytes, offset=stored.offset)
        if stored.offset % stored.dtype.itemsize:
            flat = flat.clone()
        return flat.view(stored.dtype).view(stored.shape)

    def prefer_huge_pages(self, prefer: bool) -> None:
        """Ask the system for pages of 2 MiB, which are read faster, or ask it not to use them.

        Huge pages suit a file that is needed completely. If only a part is needed, they also load neighboring bytes,
        which no budget counts.
        """
        with contextlib.suppress(OSError):  # the system has no huge pages for files
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE if prefer else mmap.MADV_NOHUGEPAGE)

    def read(self, offset: int, nbytes: int) -> None:
        """Load a byte range into memory now. Systems without this advice only prefetch, or load on first access."""
        try:
            self._advise(MADV_POPULATE_READ, offset, nbytes)
        except (OSError, ValueError):
            self.prefetch(offset, nbytes)

    def touch(self, offset: int, nbytes: int) -> None:
        """Load a byte range into memory, and read one byte of each page.

        In a virtual machine, the host may back a page that was read from disk only when a processor first reads it.
        """
        self.read(offset, nbytes)
        torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=offset)[:: mmap.PAGESIZE].sum()

    def mlock(self, offset: int, nbytes: int) -> None:
        """Lock a loaded byte range in memory for as long as it is mapped (Linux only, if the process has the right)."""
        lock = getattr(ctypes.CDLL(None), "mlock2", None) if sys.platform == "linux" else None
        if lock is not None:
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            place, size = ctypes.c_void_p(self.address + first), ctypes.c_size_t(offset + nbytes - first)
            lock(place, size, MLOCK_ONFAULT)  # a refusal is no error: the system may then reclaim the pages

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Start reading a byte range without waiting for it (MADV_WILLNEED)."""
        if hasattr(mmap, "MADV_WILLNEED"):
            self._advise(mmap.MADV_WILLNEED, offset, nbytes)

    def evict(self, offset: int, nbytes: int) -> None:
        """Evict the pages that lie completely in a byte range from this process. Changes to them are lost.

        The next access loads them from the file again.
        """
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and stop > first:
            self._advise(mmap.MADV_DONTNEED, first, stop - first)

    def _advise(self, advice: int, offset: int, nbytes: int) -> None:
        if hasattr(self._map, "madvise"):
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(advice, first, offset + nbytes - first)


def bytes_in_files(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes of tensors on the CPU view safetensors files; 0 if the system does not report maps."""
    if not MAPPINGS.exists():
        return 0
    lines = [line.split() for line in MAPPINGS.with_name("maps").read_text(encoding="utf-8").splitlines()]
    bounds = [line[0].split("-") for line in lines if line[-1].endswith(".safetensors")]
    ranges = [(int(first, 16), int(end, 16)) for first, end in bounds]
    return sum(
        tensor.nbytes
        for tensor in tensors
        if tensor.device.type == "cpu" and any(first <= tensor.data_ptr() < end for first, end in ranges)
    )


def lies_in_huge_pages(path: Path, offset: int, nbytes: int) -> bool:
    """Return whether the system holds a byte range of a file in huge pages, judged by NUM_SAMPLES evenly spaced ones.

    Linux reports this only for pages that a process has mapped. The sampled pages are therefore mapped, and read if
    they are not in memory yet.
    """
    first, stop = -(-offset // HUGE_PAGE), (offset + nbytes) // HUGE_PAGE
    count = min(NUM_SAMPLES, stop - first)
    if count < 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    file = MappedFile(path)
    file.prefer_huge_pages(True)
    for sample in range(count):
        file.read((first + sample * (stop - first) // count) * HUGE_PAGE, HUGE_PAGE)
    return mapped_huge(file) >= (count - 1) * HUGE_PAGE  # one sample may span two writes, and then is not huge


def mapped_huge(file: MappedFile) -> int:
    """Return how many bytes of a map lie in huge pages; 0 if the system does not report it."""
    try:
        lines = MAPPINGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    mine = itertools.dropwhile(lambda line: not line.startswith(f"{file.address:x}-"), lines)
    return next((int(line.split()[1]) << 10 for line in mine if line.startswith("FilePmdMapped:")), 0)


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask the system to back a newly allocated tensor on the CPU with huge pages, before it is first written."""
    advice: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < mmap.PAGESIZE:
        return
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    stop = -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    _madvise()(first, stop - first, advice)  # a refusal is no error: the memory is usable either way


@cache
def _madvise() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
