"""`benchmarks/gpu.sh` in small on a CPU: its cheap parts give figures, and one that fails costs no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


needs_bash = pytest.mark.skipif(os.name != "posix", reason="a bash script")


def run(out: Path, parts: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYTHON": sys.executable, "DEVICE": "cpu", "SMOKE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", out],
        env={**os.environ, **settings, "PARTS": parts, "INPUTS": str(out / "none")},
        capture_output=True,
        text=True,
        timeout=600,
    )


def rows_of(out: Path) -> list[list[str]]:
    table = (out / "table.md").read_text()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]


def count(rows: list[list[str]], part: str, unit: str) -> int:
    return sum(row[0] == part and row[3] == unit and float(row[2]) > 0 for row in rows)


@needs_bash
def test_parts_give_figures_and_one_that_fails_costs_no_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run(out, "decode nano train")
    assert ran.returncode == 1, ran.stderr
    states = dict(line.split("\t") for line in (out / "states.txt").read_text().splitlines())
    assert states == {"decode": "ok", "nano": "failed with code 1", "train": "ok"}
    assert ran.stdout == (out / "table.md").read_text()
    rows = rows_of(out)
    assert count(rows, "decode", "tokens/s") == 6  # two batches of each of three forms
    assert count(rows, "train", "% MFU") == 6
    assert ["nano", "**failed with code 1**: see nano.log", "", ""] in rows
    assert ["bench", "not run", "", ""] in rows
    assert (out / "plot.png").stat().st_size > 1000


@needs_bash
@pytest.mark.slow
def test_products_the_engine_and_divided_experts_give_figures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = run(out, "products server ranks")
    assert ran.returncode == 0, ran.stderr
    rows = rows_of(out)
    assert count(rows, "products", "GB/s") == 3  # three numbers of rows, in plain PyTorch
    assert count(rows, "server", "tokens/s") == 2
    assert count(rows, "ranks", "tokens/s") == 4  # two batches over two ranks, and of one process
    held = [float(row[2]) for row in rows if row[0] == "ranks" and row[3] == "GB"]
    assert held[0] < held[1], "a rank holds a part of the experts"


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    ran = subprocess.run(
        [ROOT / "benchmarks" / "gpu.sh", tmp_path],
        env={**os.environ, "PARTS": "speed"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 2
    assert "PARTS must be of" in ran.stderr
