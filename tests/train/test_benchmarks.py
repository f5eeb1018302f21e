"""The benchmarks of training run, and write what they say that they write; their figures are nobody's here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.hf
def test_training_is_compared_with_the_library_and_the_loader_with_the_trainer(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    trained = tmp_path / "training.json"
    assert "times plain" in run("training.py", "--quick", "--dtypes", "float32", "--out", str(trained))
    (row,) = json.loads(trained.read_text())["training"]
    assert row["loss_difference"] < 1e-4
    assert min(row["ratio"], row["limit_flops_per_s"], row["ours"]["tokens_per_s"], row["plain"]["tiles_per_s"]) > 0
    small = ("--small", "--seq-len", "1024", "--records", "8", "--steps", "1", "--index-records", "5000")
    counts = ("--windows", "1", "--workers", "0", "--training", str(trained), "--out", str(tmp_path / "loader.json"))
    assert "times the trainer" in run("loader.py", *small, *counts)
    (loading,) = json.loads((tmp_path / "loader.json").read_text())["loading"]
    asked = json.loads(trained.read_text())["loader"]
    ratios = [loading[n] / loading["wall_s"] / asked[f"trainer_{n}_per_s"] for n in ("samples", "tiles")]
    assert loading["times_the_trainer"] == pytest.approx(min(ratios))


def test_the_load_of_experts_is_drawn_with_and_without_the_bias(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    said = run("expert_load.py", "--steps", "3", "--settled", "1", "--out", str(tmp_path / "load.svg"))
    assert "steps within 2" in said
    assert "without it" in (tmp_path / "load.svg").read_text(encoding="utf-8")
