"""Pages of memory: files mapped in place, and what the system is advised to do with them. Offsets and sizes in bytes.

A tensor that views a file is not copied; processes share its pages, and the system may take them back. A page is read
when it is first touched, unless it was asked for before. What is written to such a tensor stays in this process and
never reaches the file. The file must not be cut short while it is mapped: the system would end the process.

A model is read from end to end for every token, at the speed of memory. With pages of 4 KiB a part of that goes into
looking up where the next page lies: with huge ones, of 2 MiB, one core reads a fifth to a quarter faster from fresh
memory and two to three times as fast from a file, and fresh memory is filled faster too. Only Linux gives them.

Advice is no command: where a system lacks or refuses it, nothing happens.
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
NUM_SAMPLES = 8  # huge pages that are looked at to tell of a part of a file
# Linux's number for "read these pages now, with one call"; Python has no name for it. Refused before kernel 5.14.
MADV_POPULATE_READ = 22
# "Lock what has come and what comes." A plain lock would touch such pages as if they were written, and so copy them.
MLOCK_ONFAULT = 1
MAPPINGS = Path("/proc/self/smaps")  # what this process maps and how, on Linux


class MappedFile:
    """One file in the address space of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # Copy on write: changing a layer in place (merging an adapter) must neither fail nor alter the file.
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
        """Return a tensor that views the file, or a copy of one that is not aligned for its type."""
        flat = torch.frombuffer(self._map, dtype=torch.uint8, count=stored.nbytes, offset=stored.offset)
        if stored.offset % stored.dtype.itemsize:
            flat = flat.clone()
        return flat.view(stored.dtype).view(stored.shape)

    def prefer_huge_pages(self, prefer: bool) -> None:
        """Ask for 2 MiB pages, which a processor reads through faster, or refuse them.

        They suit a file that is wanted as a whole. Of a part they bring in the neighborhood too, uncounted.
        """
        with contextlib.suppress(OSError):  # where the system has none for files
            if hasattr(mmap, "MADV_HUGEPAGE"):
                self._map.madvise(mmap.MADV_HUGEPAGE if prefer else mmap.MADV_NOHUGEPAGE)

    def read(self, offset: int, nbytes: int) -> None:
        """Bring a part into memory now, where the system can be told to; elsewhere it comes when it is touched."""
        try:
            self._advise(MADV_POPULATE_READ, offset, nbytes)
        except (OSError, ValueError):
            self.prefetch(offset, nbytes)

    def touch(self, offset: int, nbytes: int) -> None:
        """Bring a part into memory, and read a byte of each page.

        To a virtual machine its host may give what came from a disk only when a processor first reads it.
        """
        self.read(offset, nbytes)
        torch.frombuffer(self._map, dtype=torch.uint8, count=nbytes, offset=offset)[:: mmap.PAGESIZE].sum()

    def mlock(self, offset: int, nbytes: int) -> None:
        """Lock a part, once it has come, in memory as long as it is mapped, if this process may do that."""
        lock = getattr(ctypes.CDLL(None), "mlock2", None) if sys.platform == "linux" else None
        if lock is not None:
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            place, size = ctypes.c_void_p(self.address + first), ctypes.c_size_t(offset + nbytes - first)
            lock(place, size, MLOCK_ONFAULT)  # its refusal is no error: the system may take the pages back then

    def prefetch(self, offset: int, nbytes: int) -> None:
        """Start reading a part, without waiting for it (MADV_WILLNEED)."""
        if hasattr(mmap, "MADV_WILLNEED"):
            self._advise(mmap.MADV_WILLNEED, offset, nbytes)

    def evict(self, offset: int, nbytes: int) -> None:
        """Evict the whole pages of a part from this process; they come back from the file. Changes are lost."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and stop > first:
            self._advise(mmap.MADV_DONTNEED, first, stop - first)

    def _advise(self, advice: int, offset: int, nbytes: int) -> None:
        if hasattr(self._map, "madvise"):
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(advice, first, offset + nbytes - first)


def bytes_in_files(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes of tensors on the CPU view safetensors files; 0 where the system does not say."""
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
    """Tell whether the system holds a part of a file in huge pages, by eight of them.

    Linux says it only of what a process has mapped: these eight are, and read if they are not in memory yet.
    """
    first, stop = -(-offset // HUGE_PAGE), (offset + nbytes) // HUGE_PAGE
    count = min(NUM_SAMPLES, stop - first)
    if count < 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return False
    file = MappedFile(path)
    file.prefer_huge_pages(True)
    for sample in range(count):
        file.read((first + sample * (stop - first) // count) * HUGE_PAGE, HUGE_PAGE)
    return mapped_huge(file) >= (count - 1) * HUGE_PAGE  # one may lie where two writes meet


def mapped_huge(file: MappedFile) -> int:
    """Return how many bytes of a map lie in huge pages; 0 where the system does not say."""
    try:
        lines = MAPPINGS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    mine = itertools.dropwhile(lambda line: not line.startswith(f"{file.address:x}-"), lines)
    return next((int(line.split()[1]) << 10 for line in mine if line.startswith("FilePmdMapped:")), 0)


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages under a tensor that has not been written yet."""
    advice: int | None = getattr(mmap, "MADV_HUGEPAGE", None)
    if advice is None or tensor.device.type != "cpu" or tensor.nbytes < mmap.PAGESIZE:
        return
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    stop = -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    _madvise()(first, stop - first, advice)  # its refusal is no error: the memory is there all the same


@cache
def _madvise() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
