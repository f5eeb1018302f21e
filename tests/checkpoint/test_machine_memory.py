"""What the machine can give: the system's figures, a container's limit, and sizes as people write them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vl2.checkpoint import machine_memory
from vl2.checkpoint.machine_memory import MachineMemory, parse_bytes
from vl2.errors import UserError


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


GB = 10**9


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a machine of 16 GB, 12 of them free, whose control groups lie below the folder that is returned."""
    meminfo, root = tmp_path / "meminfo", tmp_path / "cgroup"
    meminfo.write_text("MemTotal:       16000000 kB\nMemFree:  100 kB\nMemAvailable:   12000000 kB\n")
    moved = [replace(h, root=root / h.root.relative_to("/sys/fs/cgroup")) for h in machine_memory.HIERARCHIES]
    monkeypatch.setattr(machine_memory, "MEMINFO", meminfo)
    monkeypatch.setattr(machine_memory, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(machine_memory, "HIERARCHIES", moved)
    return root


def write_group(folder: Path, **files: int | str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(f"{content}\n")


def test_the_limit_of_a_container_counts_and_cached_files_do_not(groups: Path) -> None:
    assert MachineMemory.now() == MachineMemory(total=16_384_000_000, available=12_288_000_000)
    write_group(groups, max=4 * GB, current=3_500_000_000, stat="anon 500000000\nfile 3000000000\nfile_mapped 7")
    assert MachineMemory.now() == MachineMemory(total=4_000_000_000, available=3_500_000_000)
    write_group(groups, max="max")
    assert MachineMemory.now().total == 16_384_000_000


def test_the_smallest_limit_of_the_own_group_and_those_above_it_counts(groups: Path) -> None:
    (groups.parent / "own").write_text("0::/system.slice/job.scope/step:0\n")
    write_group(groups / "system.slice" / "other.scope", max=1 * GB, current=0)
    write_group(groups / "system.slice" / "job.scope" / "step:0", max="max", current=1 * GB)
    assert MachineMemory.now().total == 16_384_000_000
    write_group(groups / "system.slice" / "job.scope", max=6 * GB, current=2 * GB)
    assert MachineMemory.now() == MachineMemory(total=6 * GB, available=4 * GB)
    write_group(groups / "system.slice", max=8 * GB, current=7 * GB)  # others of the slice leave less than the job may
    assert MachineMemory.now() == MachineMemory(total=6 * GB, available=1 * GB)


def test_the_first_version_of_control_groups_has_the_path_in_the_controllers_line(groups: Path) -> None:
    (groups.parent / "own").write_text("12:cpu,cpuacct:/\n5:memory:/slurm/uid_7/job_1\n0::/init.scope\n")
    write_group(groups / "memory", limit_in_bytes=2**63 - 4096, usage_in_bytes=3 * GB)
    write_group(groups / "memory" / "slurm" / "uid_7" / "job_1", limit_in_bytes=5 * GB, usage_in_bytes=2 * GB)
    write_group(groups / "memory" / "slurm" / "uid_7" / "job_1", stat="cache 0\ntotal_cache 1000000000")
    assert MachineMemory.now() == MachineMemory(total=5 * GB, available=4 * GB)
