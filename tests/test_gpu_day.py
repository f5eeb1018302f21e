"""`benchmarks/gpu.sh` in small on a CPU: its cheap parts give figures, and one that fails costs no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(os.name != "posix", reason="a bash script")
def test_parts_give_figures_and_one_that_fails_costs_no_other(tmp_path: Path) -> None:
    settings = {"PYTHON": sys.executable, "DEVICE": "cpu", "SMOKE": "1", "OMP_NUM_THREADS": "1"}
    parts = {"PARTS": "products decode server ranks nano train", "INPUTS": str(tmp_path / "none")}
    ran = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path / "out"],
        env={**os.environ, **settings, **parts},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ran.returncode == 1, ran.stderr
    states = dict(line.split("\t") for line in (tmp_path / "out" / "states.txt").read_text().splitlines())
    well = ("products", "decode", "server", "ranks", "train")
    assert states == {**dict.fromkeys(well, "ok"), "nano": "failed with code 1"}
    table = (tmp_path / "out" / "table.md").read_text()
    assert ran.stdout == table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    # Two batches: of three forms of the weights, of one, and of two ranks and one.
    for part, unit, count in (("decode", "tokens/s", 6), ("server", "tokens/s", 2), ("ranks", "tokens/s", 4)):
        assert sum(row[0] == part and row[3] == unit and float(row[2]) > 0 for row in rows) == count, part
    assert sum(row[0] == "products" and row[3] == "GB/s" and float(row[2]) > 0 for row in rows) == 3
    held = [float(row[2]) for row in rows if row[0] == "ranks" and row[3] == "GB"]
    assert held[0] < held[1], "a rank holds a part of the experts"
    assert sum(row[0] == "train" and row[3] == "% MFU" and float(row[2]) > 0 for row in rows) == 6
    assert ["nano", "**failed with code 1**: see nano.log", "", ""] in rows
    assert ["bench", "not run", "", ""] in rows
    assert (tmp_path / "out" / "plot.png").stat().st_size > 1000


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    ran = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path],
        env={**os.environ, "PARTS": "speed"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "PARTS must be of" in ran.stderr
