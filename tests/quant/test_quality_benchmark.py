"""The benchmark of what quantizing costs: plain weights cost nothing, and 8 bits less than 4."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def test_the_costs_are_ordered_and_written(tmp_path: Path) -> None:
    script, out = ROOT / "benchmarks" / "quantization_quality.py", tmp_path / "costs.json"
    text = ROOT / "docs" / "architecture.md"
    few = ("--windows", "2", "--window", "64", "--answer", "4", "--side", "168")
    done = subprocess.run(
        [sys.executable, str(script), "nano", "--text", str(text), *few, "--out", str(out)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    costs = {cost["form"]: cost for cost in json.loads(out.read_text())}
    assert list(costs) == ["float32", "bfloat16", "int8", "int4", "int8 cache"]
    assert costs["float32"]["mean_divergence"] == 0
    assert costs["float32"]["same_first"] == 1
    assert 0 < costs["int8"]["mean_divergence"] < costs["int4"]["mean_divergence"] < 0.5  # nats; guessing is 8
    assert 0 < costs["int8 cache"]["mean_divergence"] < costs["int4"]["mean_divergence"]
    assert costs["int4"]["same_first"] < costs["int8"]["same_first"]
    assert [line.split(" | ")[0] for line in done.stdout.splitlines()[2:]] == [f"| {form}" for form in costs]
