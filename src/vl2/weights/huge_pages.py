"""Weights in huge pages, where Linux gives them to who asks.

A model is read from end to end for every token, at the speed of memory. With pages of 4 KiB a part of that goes into
looking up where the next page lies: with 2 MiB one core reads a fifth to a quarter faster, and fresh memory is filled
faster too. Elsewhere, and where the system refuses, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

from torch import Tensor

ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def prefer_huge_pages(tensor: Tensor) -> None:
    """Ask for huge pages under a tensor that has not been written yet."""
    if ADVICE is None or tensor.device.type != "cpu" or tensor.nbytes < mmap.PAGESIZE:
        return
    first = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    stop = -(-(tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    _madvise()(first, stop - first, ADVICE)  # its refusal is no error: the memory is there all the same


@cache
def _madvise() -> ctypes._NamedFuncPointer:
    function = ctypes.CDLL(None).madvise
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_int
    return function
