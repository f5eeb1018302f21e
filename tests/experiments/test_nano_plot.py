"""The picture of a run has a curve for everything that a stage wrote, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from experiments.nano.plan import Where, make_plans, read_run
from experiments.nano.plot import PICTURE, draw_run

RECIPE = Path(__file__).parents[2] / "experiments/nano/recipe.toml"


def test_it_draws_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = make_plans(read_run(RECIPE), 2, Where(inputs=tmp_path, to=tmp_path))
    plans = [replace(plan, folder=tmp_path / plan.name) for plan in plans]
    found = [{"step": 20 * n, "class_loss": 1.0, "difficulty": 0.1, "latin": n / 10, "named": 0.5} for n in range(1, 4)]
    losses = [{"step": n, "loss_by_category": {"text": 8.0 / n}, "auxiliary_loss": 0.0} for n in range(1, 61)]
    for name, lines in (("reading", found), ("language", losses)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves: dict[str, list[tuple[float, float]]] = {}
    plot = Axes.plot

    def noted(axes: Axes, x: list[float], y: list[float], *args: object, **options: str) -> object:
        curves[options["label"]] = list(zip(x, y, strict=True))
        return plot(axes, x, y, *args, **options)

    monkeypatch.setattr(Axes, "plot", noted)
    draw_run(tmp_path, plans)
    assert curves.keys() == {"latin", "named", "text"}
    assert curves["latin"] == [(20, pytest.approx(10)), (40, pytest.approx(20)), (60, pytest.approx(30))]
    assert [step for step, _ in curves["text"]] == [20, 40, 60], "means over twenty steps"
    assert (tmp_path / PICTURE).stat().st_size > 5000
