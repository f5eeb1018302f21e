"""Measure the main memory of this machine in bytes: in total, and available now.

On Linux the limits of control groups (containers) count too. Only the standard library is used.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from vl2.errors import UserError

MEMINFO = Path("/proc/meminfo")
OWN_GROUPS = Path("/proc/self/cgroup")
UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Hierarchy:
    """Where a version of Linux control groups is mounted, and the names of its files and statistics."""

    root: Path
    controller: str  # the controller's name in the lines of OWN_GROUPS; empty in version 2
    limit: str  # file with the memory limit in bytes, or "max"
    usage: str  # file with the bytes in use, cached files included
    cached: str  # name in memory.stat of the bytes of cached files, which the system can free


HIERARCHIES = (
    Hierarchy(root=Path("/sys/fs/cgroup"), controller="", limit="memory.max", usage="memory.current", cached="file"),
    Hierarchy(
        root=Path("/sys/fs/cgroup/memory"),
        controller="memory",
        limit="memory.limit_in_bytes",
        usage="memory.usage_in_bytes",
        cached="total_cache",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MachineMemory:
    """Bytes of main memory (not of a GPU's memory)."""

    total: int
    available: int  # without swapping out other programs; half of `total` if the system does not report it

    @classmethod
    def now(cls) -> MachineMemory:
        total, available = _of_the_system()
        of_the_system = total
        for hierarchy in HIERARCHIES:
            for folder in _own_groups(hierarchy):
                limit = _number(folder / hierarchy.limit)
                if limit is not None and limit < of_the_system:
                    used = (_number(folder / hierarchy.usage) or 0) - _statistic(
                        folder / "memory.stat", hierarchy.cached
                    )
                    total, available = min(total, limit), min(available, max(0, limit - used))
        return cls(total=total, available=available)


def parse_bytes(text: str) -> int:
    """Return the number of bytes of a size such as "8GB", "800 MB" or "7.5GiB". Raise UserError for other texts."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise UserError(f"a size is a number with a unit, such as 8GB or 800MB, got {text!r}")
    return round(float(match[1]) * UNITS[match[2].upper()])


def _of_the_system() -> tuple[int, int]:
    if MEMINFO.is_file():
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return _kilobytes(lines["MemTotal"]), _kilobytes(lines["MemAvailable"])
    if sys.platform == "win32":
        return _of_windows()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return total, total // 2


def _own_groups(hierarchy: Hierarchy) -> list[Path]:
    """Return the folders of this process's control group and of all its parents, because the limit of each applies.

    In a container with its own view of the groups, the path may not exist below the root, or may be the root itself.
    """
    try:
        lines = [line.split(":", 2) for line in OWN_GROUPS.read_text().splitlines()]
    except OSError:
        lines = []
    paths = [path for _, controllers, path in lines if hierarchy.controller in controllers.split(",")]
    own = Path(paths[0].lstrip("/")) if paths else Path()
    return [hierarchy.root / group for group in (own, *own.parents)]


def _kilobytes(text: str) -> int:
    return int(text.split()[0]) * 1024


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such file, or "max"
        return None


def _statistic(file: Path, name: str) -> int:
    try:
        return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{name} "))
    except (OSError, StopIteration):
        return 0


class _WindowsStatus(ctypes.Structure):
    """The structure MEMORYSTATUSEX of the Windows API."""

    _fields_ = [
        ("length", ctypes.c_ulong), ("load", ctypes.c_ulong),
        ("total", ctypes.c_ulonglong), ("available", ctypes.c_ulonglong),
        ("total_paged", ctypes.c_ulonglong), ("available_paged", ctypes.c_ulonglong),
        ("total_virtual", ctypes.c_ulonglong), ("available_virtual", ctypes.c_ulonglong),
        ("extended", ctypes.c_ulonglong),
    ]  # fmt: skip


def _of_windows() -> tuple[int, int]:
    status = _WindowsStatus(length=ctypes.sizeof(_WindowsStatus))
    ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))  # type: ignore[attr-defined]
    return status.total, status.available
