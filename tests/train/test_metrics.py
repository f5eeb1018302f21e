"""Metrics: a line a step that survives a kill, a curve without doubles, and the same numbers in the trackers."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.toy import toy_recipe
from vl2.errors import UserError
from vl2.progress import format_time
from vl2.train.metric_outputs import Outputs, TrainProgress, open_tracker, tracker_names
from vl2.train.metrics import MetricsFile, StepMetrics, read_metrics
from vl2.train.plots import save_run_plots, smooth
from vl2.train.ranks import Ranks


def metrics(step: int, **changes: Any) -> StepMetrics:
    values: dict[str, Any] = {
        "step": step,
        "loss": 4 / step + 1,
        "loss_by_category": {"ocr": 4 / step + 1.2, "text": 4 / step + 0.8},
        "balance_loss": 2.0,
        "auxiliary_loss": 1.5,
        "learning_rate": 1e-3 / step,
        "grad_norm": 1.5,
        "grad_norm_by_part": {"vision": 0.9, "experts": 1.2},
        "tokens": 1000,
        "trained_tokens": 300,
        "tiles": 12,
        "pack_fill": 0.98,
        "expert_load": (1.2, 2.5),
        "bias_range": (0.01, 0.02),
        "step_s": 0.5,
        "data_wait_s": 0.1,
        "tokens_per_s": 2000.0,
        "tiles_per_s": 24.0,
        "mfu": 0.31,
    }
    return StepMetrics(**{**values, **changes})


def write(folder: Path, steps: range, last_step: int = 0) -> None:
    file = MetricsFile(folder, last_step=last_step)
    for step in steps:
        file.append(metrics(step).to_dict())
    file.close()


def test_a_resumed_curve_has_every_step_once(tmp_path: Path) -> None:
    write(tmp_path, range(1, 8))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # killed while it wrote
    write(tmp_path, range(5, 7), last_step=4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_line_is_in_the_file_as_soon_as_it_is_appended(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.append({"step": 1, "loss": 0.1 + 0.2})
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.1 + 0.2]
    file.close()


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.append(metrics(1, loss=math.nan, loss_by_category={"ocr": math.inf}, grad_norm=-math.inf).to_dict())
    file.close()
    (line,) = read_metrics(tmp_path)
    assert (line["loss"], line["loss_by_category"], line["grad_norm"]) == (None, {"ocr": None}, None)


def test_a_damaged_file_is_refused_by_its_line(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join([lines[0], "[]", lines[2]]) + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged at line 2$"):
        list(read_metrics(tmp_path))
    with pytest.raises(UserError, match=r"no metrics.jsonl in .*: is this a run folder\?"):
        list(read_metrics(tmp_path / "elsewhere"))


def test_tensorboard_gets_the_numbers_of_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = open_tracker("tensorboard", tmp_path, {}, 1)
    for step in (1, 2):
        tracker.log(step, metrics(step).scalars())
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss/all", "loss/ocr", "expert_load/layer_1", "speed/mfu"} <= set(events.Tags()["scalars"])
    assert [(e.step, e.value) for e in events.Scalars("loss/all")] == [(1, 5.0), (2, 3.0)]


def test_tensorboard_is_written_wherever_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = toy_recipe(tmp_path, tmp_path, tmp_path / "run", trackers=("wandb",))
    for is_installed, expected in ((True, ("tensorboard", "wandb")), (False, ("wandb",))):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=is_installed: found or None)
        assert tracker_names(recipe) == expected
    asked = toy_recipe(tmp_path, tmp_path, tmp_path / "run", trackers=("tensorboard",))
    assert tracker_names(asked) == ("tensorboard",)  # not installed: opening it says so


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path, tmp_path, tmp_path)
    for rank in (1, 0):
        with Outputs(recipe, Ranks(rank=rank, size=2, device=torch.device("cpu")), 0) as outputs:
            outputs.step(metrics(1))
            outputs.evaluation(1, {"held/exact_match": 0.5})
        assert (tmp_path / "metrics.jsonl").exists() == (rank == 0)
    assert [line.get("evaluation") for line in read_metrics(tmp_path)] == [None, {"held/exact_match": 0.5}]


def hosted(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Put a module in a tracker's place that notes its calls, and return the notes."""
    calls: list[tuple[str, Any]] = []
    module = types.ModuleType(kind)
    module.init = lambda **options: calls.append(("init", options))  # type: ignore[attr-defined]
    module.log = lambda values, step: calls.append(("log", (step, values)))  # type: ignore[attr-defined]
    module.finish = lambda: calls.append(("finish", None))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, kind, module)
    return calls


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_hosted_tracker_gets_the_same_numbers(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, folder = hosted(kind, monkeypatch), tmp_path / "tiny" / "alignment"
    folder.mkdir(parents=True)
    tracker = open_tracker(kind, folder, {"recipe": "x"}, 1)
    tracker.log(3, metrics(3).scalars())
    tracker.close()
    assert [name for name, _ in calls] == ["init", "log", "finish"]
    assert (calls[0][1]["project"], calls[0][1]["resume"]) == ("vl2", "allow")
    assert calls[0][1]["name"].startswith("tiny-alignment")
    assert calls[1][1] == (3, metrics(3).scalars())


@pytest.mark.parametrize(("kind", "known_by"), [("wandb", "id"), ("trackio", "name")])
def test_only_a_run_that_resumes_goes_on_in_its_place(
    kind: Any, known_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = hosted(kind, monkeypatch)
    for parent, first_step in (("one", 1), ("one", 5), ("other", 1), ("one", 1), ("one", 5)):
        folder = tmp_path / parent / "tiny" / "alignment"
        folder.mkdir(parents=True, exist_ok=True)
        open_tracker(kind, folder, {}, first_step)
    first, resumed, elsewhere, anew, resumed_anew = (options[known_by] for _, options in calls)
    assert (resumed, resumed_anew) == (first, anew)
    assert len({first, elsewhere, anew}) == 3


def test_a_tracker_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^the tracker wandb is not installed: pip install wandb$"):
        open_tracker("wandb", tmp_path, {}, 1)


def test_what_has_no_value_is_not_tracked() -> None:
    scalars = metrics(1, loss=math.nan, mfu=None, expert_load=(), bias_range=()).scalars()
    assert not {"loss/all", "speed/mfu", "expert_load/max", "bias_range/max"} & set(scalars)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_say_what_one_watches() -> None:
    out = io.StringIO()
    with TrainProgress(4, 0, log_every=2, file=out) as progress:
        for step in range(1, 5):
            progress.step(metrics(step, discarded="loss is nan" if step == 2 else ""))
        progress.say("saved")
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["vl2: step 2/4", "vl2: step 4/4", "vl2: saved"]
    figures = "loss 3.0000  rate 5.00e-04  norm 1.50  2,000 tokens/s  packs 98% full  MFU 31%"
    assert f"{figures}  discarded: loss is nan" in lines[0]


def test_a_terminal_gets_a_bar_and_lines_above_it() -> None:
    out = Terminal()
    with TrainProgress(4, 2, file=out) as progress:
        progress.step(metrics(3))
        progress.say("[saved]")
    assert "3/4" in out.getvalue()
    assert "loss 2.3333" in out.getvalue()
    assert "vl2: [saved]" in out.getvalue()


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()])
def test_quiet_says_nothing(file: io.StringIO) -> None:
    with TrainProgress(4, 0, quiet=True, file=file) as progress:
        progress.step(metrics(1))
        progress.say("saved")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (61, "1 min 01 s"), (3_660, "1 h 01 min"), (90_000_000, "1041 d 16 h")]
)
def test_a_time_is_told_in_its_two_largest_parts(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_plots_are_drawn_twice_the_same(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = MetricsFile(tmp_path)
    for step in range(1, 9):
        file.append(metrics(step, loss=math.nan if step == 4 else 5 / step).to_dict())
    file.append({"step": 8, "evaluation": {"held/exact_match": 0.25}})
    file.close()
    drawn = save_run_plots(tmp_path)
    assert {path.name for path in drawn} == {
        f"{name}.{kind}" for name in ("loss", "learning_rate", "expert_load", "evaluation") for kind in ("png", "svg")
    }
    again = save_run_plots(tmp_path, tmp_path / "again")
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(drawn, again, strict=True))
    assert "Loss per trained token" in (tmp_path / "plots" / "loss.svg").read_text()


def test_a_run_without_steps_has_nothing_to_draw(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"has no steps yet: there is nothing to draw"):
        save_run_plots(tmp_path)


def test_smoothing_keeps_a_level_and_passes_over_gaps() -> None:
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    values = smooth([3.0, math.nan, 3.0] * 100)
    assert values == pytest.approx([3.0] * 300)


def test_the_written_form_is_plain_json() -> None:
    assert json.loads(json.dumps(metrics(1).to_dict(), allow_nan=False))["expert_load"] == [1.2, 2.5]
