"""What the machine can give: the system's figures, a container's limit, and sizes as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from vl2.errors import UserError
from vl2.weights import machine_memory
from vl2.weights.machine_memory import MachineMemory, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 10**9), ("800 MB", 800 * 10**6), ("7.5GiB", 15 * 2**29), ("1tb", 10**12), (" 512kib ", 2**19)],
)
def test_sizes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["8", "GB", "8 gallons", "-1GB", "1e9B", ""])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="a size is a number with a unit, such as 8GB"):
        parse_bytes(text)


def test_this_machine_has_memory() -> None:
    memory = MachineMemory.now()
    assert 0 < memory.available <= memory.total


def test_the_limit_of_a_container_counts_and_cached_files_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:   12000000 kB\n")
    monkeypatch.setattr(machine_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(machine_memory, "GROUPS", ((tmp_path, "memory.max", "memory.current", "file"),))
    assert MachineMemory.now() == MachineMemory(total=16_384_000_000, available=12_288_000_000)
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("3500000000\n")
    (tmp_path / "memory.stat").write_text("anon 500000000\nfile 3000000000\nfile_mapped 7\n")
    assert MachineMemory.now() == MachineMemory(total=4_000_000_000, available=3_500_000_000)
    (tmp_path / "memory.max").write_text("max\n")
    assert MachineMemory.now().total == 16_384_000_000
