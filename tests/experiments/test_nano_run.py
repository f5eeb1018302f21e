"""The run of the built-in model: its plan follows from the recipe and the budget, and it goes on where it stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from experiments.nano.inputs.manifest import MANIFEST, check_manifest, write_manifest
from experiments.nano.inputs.pins import GIVEN, Pin, PinnedArchives, place_of, read_pins, sha256_of
from experiments.nano.plan import (
    RunRecipe,
    Where,
    core_seconds_per_step,
    data_recipe,
    make_plans,
    num_records,
    num_steps,
    read_run,
)
from experiments.nano.progress import CoreSeconds, read_hours, summary
from experiments.nano.run import SETTINGS, NanoRun, main
from experiments.nano.warm_up.recipe import WarmUpRecipe
from tests.experiments.nano_inputs import write_inputs
from vl2.curate.stage_recipe import read_recipe
from vl2.errors import UserError
from vl2.train.recipe import Recipe

RECIPE = Path(__file__).parents[2] / "experiments/nano/recipe.toml"


@pytest.fixture(scope="module")
def recipe() -> RunRecipe:
    return read_run(RECIPE)


def where(folder: Path) -> Where:
    return Where(inputs=folder / "inputs", to=folder / "run")


def test_there_are_at_most_six_stages_and_each_says_why(recipe: RunRecipe) -> None:
    assert len(recipe.stages) <= 6
    assert all(stage.why.endswith(".") for stage in recipe.stages)
    assert 0.9 <= sum(stage.share for stage in recipe.stages) < 1, "what is left is for drawing"


@pytest.mark.parametrize("budget", [2, 10, 40])
def test_the_steps_of_all_stages_cost_their_part_of_the_budget(
    recipe: RunRecipe, budget: float, tmp_path: Path
) -> None:
    plans = make_plans(recipe, budget, where(tmp_path))
    costs = [
        plan.num_steps * core_seconds_per_step(recipe, stage, budget)
        for plan, stage in zip(plans, recipe.stages, strict=True)
    ]
    assert sum(costs) / 3600 == pytest.approx(budget * sum(stage.share for stage in recipe.stages), rel=0.02)


def test_each_stage_starts_from_the_one_before_and_the_first_from_random_weights(
    recipe: RunRecipe, tmp_path: Path
) -> None:
    plans = make_plans(recipe, 10, where(tmp_path))
    assert plans[0].recipe.model.init == "random"
    for before, after in pairwise(plans):
        assert (after.recipe.model.name, after.recipe.model.init) == (str(before.export), "weights")
    assert [isinstance(plan.recipe, WarmUpRecipe) for plan in plans] == [False, True, False, False, False]


def test_packs_and_rates_grow_with_the_budget_and_are_the_recipes_at_ten(recipe: RunRecipe, tmp_path: Path) -> None:
    def of_last(budget: float) -> tuple[int, float]:
        last = make_plans(recipe, budget, where(tmp_path))[-1].recipe
        assert isinstance(last, Recipe)
        return last.stage.batch_size, last.stage.learning_rate

    given = recipe.stages[-1].train["stage"]
    assert of_last(10) == (given["batch_size"], given["learning_rate"])
    assert (of_last(2)[0], of_last(40)[0]) == (2, 8)
    assert of_last(2)[1] < of_last(10)[1] < of_last(40)[1]


def test_beside_a_gpu_all_cores_draw_and_prepare(recipe: RunRecipe, tmp_path: Path) -> None:
    plans = make_plans(recipe, 40, replace(where(tmp_path), device="cuda", helpers=15))
    for plan in plans:
        if isinstance(plan.recipe, WarmUpRecipe):
            assert plan.recipe.options.draw_processes == 15
        else:
            assert plan.recipe.data.workers == 15
    on_cpu = make_plans(recipe, 40, where(tmp_path))
    assert {p.recipe.data.workers for p in on_cpu if isinstance(p.recipe, Recipe)} == {2}


def test_half_the_packs_cost_five_eighths(recipe: RunRecipe) -> None:
    stage = recipe.stages[-1]
    two, ten = (core_seconds_per_step(recipe, stage, budget) for budget in (2, 10))
    assert (two / ten, ten) == (pytest.approx(0.625), stage.core_seconds_per_step)


def test_every_stage_has_its_sources_in_their_shares(recipe: RunRecipe, tmp_path: Path) -> None:
    for plan, stage in zip(make_plans(recipe, 2, where(tmp_path)), recipe.stages, strict=True):
        if not isinstance(plan.recipe, Recipe):
            continue
        data = plan.recipe.data
        by_category: dict[str, float] = {}
        for name, share in stage.data.items():
            category = recipe.sources[name].category
            by_category[category] = by_category.get(category, 0) + share / sum(stage.data.values())
        planned = {name: group.share * share for group in data.groups for name, share in group.categories.items()}
        assert planned == pytest.approx(by_category)
        assert {source.name for source in data.sources} == set(stage.data)


def test_what_is_drawn_suffices_for_what_the_stages_take(recipe: RunRecipe, tmp_path: Path) -> None:
    drawn = num_records(recipe, 10)
    for name, entry in recipe.sources.items():
        taken = sum(
            num_steps(recipe, stage, 10) * 4 * 2048 * stage.data.get(name, 0) / sum(stage.data.values())
            for stage in recipe.stages
            if stage.train
        )
        if entry.most is None:
            assert drawn[name] * entry.tokens * recipe.reuse >= taken
        else:
            assert drawn[name] <= entry.most


def test_the_recipe_of_the_data_is_one_that_can_be_built(recipe: RunRecipe, tmp_path: Path) -> None:
    write_inputs(tmp_path / "inputs")
    (tmp_path / "inputs/sets/easy_vqa").mkdir(parents=True)
    path = tmp_path / "data.toml"
    path.write_text(data_recipe(recipe, 2, tmp_path / "inputs"), encoding="utf-8")
    built = read_recipe(str(path))
    assert {source.name for source in built.sources} == set(recipe.sources)


def test_a_word_that_no_recipe_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("sede = 1\n" + RECIPE.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError, match="sede"):
        read_run(path)


def test_an_unknown_source_and_a_budget_of_nothing_are_refused(recipe: RunRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a positive number of core-hours, got 0"):
        make_plans(recipe, 0, where(tmp_path))
    first = replace(recipe.stages[0], data={"tolt": 1.0})
    with pytest.raises(UserError, match="stage language: there is no source tolt"):
        make_plans(replace(recipe, stages=(first,)), 2, where(tmp_path))


TEXT = RECIPE.read_text(encoding="utf-8")
WITHOUT_STAGES, STAGES = TEXT[: TEXT.index("[[stage]]")], TEXT[TEXT.index("[[stage]]") :]
WITHOUT_SOURCES = TEXT[: TEXT.index("[source.")]


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str = TEXT, *options: str) -> int:
    """Run the command line on a recipe of this text."""
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    places = ["--inputs", str(folder / "inputs"), "--to", str(folder / "run")]
    monkeypatch.setattr(sys, "argv", ["run", str(folder / "recipe.toml"), *places, "--budget", "2", *options])
    return main()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TEXT.replace("reuse = 1.0", "reuse = 0"), "reuse must be positive, got 0"),
        (TEXT.replace("tokens = 290", "tokens = 0"), "source.passages.tokens must be at least 1, got 0"),
        (TEXT.replace("tokens = 290", ""), "source.passages.tokens is missing"),
        (TEXT.replace("most = 2000", "most = 0"), "source.given_photographs.most must be at least 1, got 0"),
        (TEXT.replace('convert = "easy_vqa"', ""), "source.easy_vqa must have either draw or convert"),
        (WITHOUT_SOURCES + "source = 3\n" + STAGES, "source must be a table, got 3"),
        (WITHOUT_SOURCES + "source = {line = 3}\n" + STAGES, "source.line must be a table, got 3"),
        (
            TEXT.replace("per_step = 2.8", "per_step = 0"),
            "stage language: core_seconds_per_step must be positive, got 0",
        ),
        (TEXT.replace("share = 0.07", 'share = "x"'), "stage[0].share must be a number, got 'x'"),
        (TEXT.replace("told = 0.6", "told = 0"), "stage language: data.told must be positive, got 0"),
        (TEXT.replace("batch_size = 4, ", "", 1), "stage[0].train.stage.batch_size is missing"),
        (TEXT.replace('schedule = "cosine", ', "", 1), "stage[0].train.stage.schedule is missing"),
        (TEXT.replace("stage = {", "stag = {", 1), "unknown key stage[0].train.stag: did you mean stage?"),
        (TEXT.replace("num_chinese = 2500", "num_chinese = 0.5"), "warm_up.tiles.num_chinese must be a whole number"),
        (TEXT.replace("[stage.warm_up]", "[stage.train]"), "must have either train and data, or warm_up"),
        (TEXT.replace('name = "alignment"', 'name = "language"'), "got language, reading, language, pretraining"),
        (TEXT.replace('name = "fine-tuning"', 'name = "../tuning"'), "got '../tuning'"),
        (TEXT.replace('name = "fine-tuning"', 'name = "data"'), "not data or export or drawing, got 'data'"),
        (WITHOUT_STAGES, "a recipe must have stages, each of another name, got none"),
        (WITHOUT_SOURCES + "stage = 3", "stage must be a list of tables, got 3"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused_in_one_line_before_anything_is_written(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, tmp_path, text) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("nano: ")
    assert said in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        *((f"--budget={text}", f"core-hours, got {text}") for text in ("nan", "inf", "0", "-1")),
        ("--ranks=0", "--ranks must be at least 1, got 0"),
    ],
)
def test_a_budget_and_ranks_that_cannot_be_are_refused_before_anything_is_written(
    option: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(write_inputs(tmp_path / "inputs"))
    assert command(monkeypatch, tmp_path, TEXT, option) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "run").exists()


def test_the_status_is_by_the_budget_of_the_run_and_changes_nothing(
    recipe: RunRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {SETTINGS: '{"core_hours": 10}', "progress.txt": "as it was", "hours.json": '{"language": 7200}'}
    (tmp_path / "run").mkdir()
    for name, text in files.items():
        (tmp_path / "run" / name).write_text(text, encoding="utf-8")
    assert command(monkeypatch, tmp_path, TEXT, "--status") == 0
    said = capsys.readouterr().out
    assert f"0 / {make_plans(recipe, 10, where(tmp_path))[0].num_steps:,}       2.00" in said
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "run").iterdir()} == files


class Recorded(NanoRun):
    """A run whose commands are noted, not run; one of them may fail."""

    def _call(self, name: str, arguments: Sequence[str]) -> None:
        done = self.where.to / "done.txt"
        with done.open("a", encoding="utf-8") as file:
            file.write(f"{name} {'--resume' in arguments}\n")
        for plan in self.plans:
            if plan.name == name:
                if name == "alignment" and not plan.folder.is_dir():
                    plan.folder.mkdir()
                    (plan.folder / "metrics.jsonl").touch()  # and no checkpoint
                    raise UserError("killed")
                plan.export.mkdir(parents=True)
                (plan.export / "config.json").write_text(name, encoding="utf-8")


def recorded(recipe: RunRecipe, folder: Path, budget: float = 2) -> Recorded:
    return Recorded(recipe=recipe, where=where(folder), core_hours=budget, ranks=2)


def test_a_run_goes_on_where_it_was_killed(recipe: RunRecipe, tmp_path: Path) -> None:
    """Each stage is given --resume, which `vl2 train` wants where there are metrics, be there a checkpoint or not."""
    write_manifest(write_inputs(tmp_path / "inputs"))
    (tmp_path / "run/data").mkdir(parents=True)
    with pytest.raises(UserError, match="killed"):
        recorded(recipe, tmp_path).go()
    recorded(recipe, tmp_path).go()
    assert (tmp_path / "run/done.txt").read_text(encoding="utf-8").splitlines() == [
        "drawing False",
        "language True",
        "reading True",
        "alignment True",
        "alignment True",
        "pretraining True",
        "fine-tuning True",
    ]
    assert (tmp_path / "run/export/config.json").read_text(encoding="utf-8") == "fine-tuning"
    with pytest.raises(UserError, match=r"was begun with .*give the same, or another folder"):
        recorded(recipe, tmp_path, budget=10).go()
    with pytest.raises(UserError, match=r"was begun with .*give the same, or another folder"):
        recorded(replace(recipe, seed=recipe.seed + 1), tmp_path).go()


def test_a_run_is_gone_on_with_by_what_it_was_begun_with(recipe: RunRecipe, tmp_path: Path) -> None:
    write_manifest(write_inputs(tmp_path / "inputs"))
    run = recorded(recipe, tmp_path)
    run._keep_settings()
    path = tmp_path / "run" / SETTINGS
    written = path.read_bytes()
    run._keep_settings()
    for other, named in (
        (replace(run, core_hours=10), r"core_hours 2\.0"),
        (replace(run, recipe=replace(recipe, seed=5)), "seed 1"),
        (replace(run, recipe=replace(recipe, reuse=9.0)), r"recipe_sha256 \w{64}"),
        (replace(run, where=replace(run.where, compute="float32")), "compute bfloat16"),
    ):
        with pytest.raises(UserError, match=rf"run was begun with {named}: give the same, or another folder"):
            other._keep_settings()
    (tmp_path / "inputs/text/more.txt").touch()
    write_manifest(tmp_path / "inputs")
    with pytest.raises(UserError, match=r"run was begun with inputs_sha256 \w{64}: give"):
        run._keep_settings()
    assert path.read_bytes() == written


def test_a_run_goes_on_whose_settings_are_of_an_older_version(recipe: RunRecipe, tmp_path: Path) -> None:
    write_manifest(write_inputs(tmp_path / "inputs"))
    (tmp_path / "run").mkdir()
    older = json.dumps({"core_hours": 2, "seed": 1, "inputs": str(tmp_path / "inputs"), "device": "cpu"})
    (tmp_path / "run" / SETTINGS).write_text(older, encoding="utf-8")
    recorded(recipe, tmp_path)._keep_settings()
    assert (tmp_path / "run" / SETTINGS).read_text(encoding="utf-8") == older


@pytest.mark.parametrize("text", ["", '{"core_hou', "[]", '{"seed": 1}', '{"core_hours": "two"}'])
def test_damaged_settings_are_refused(text: str, recipe: RunRecipe, tmp_path: Path) -> None:
    write_manifest(write_inputs(tmp_path / "inputs"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SETTINGS).write_text(text, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"run\.json is damaged .*: delete it, and the run goes on as this command says"
    ):
        recorded(recipe, tmp_path)._keep_settings()


def test_a_model_that_is_half_copied_is_not_the_runs(
    recipe: RunRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(write_inputs(tmp_path / "inputs"))
    (tmp_path / "run/data").mkdir(parents=True)
    (tmp_path / "run/alignment").mkdir()  # so that it is not killed there

    def copy_half(_: Path, to: Path, **__: bool) -> None:
        to.mkdir(exist_ok=True)
        (to / "config.json").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copytree", copy_half)
    with pytest.raises(KeyboardInterrupt):
        recorded(recipe, tmp_path).go()
    monkeypatch.undo()
    assert not (tmp_path / "run/export").exists()
    recorded(recipe, tmp_path).go()
    assert (tmp_path / "run/export/config.json").read_text(encoding="utf-8") == "fine-tuning"


def test_inputs_that_are_missing_or_changed_are_an_error_before_anything_runs(
    recipe: RunRecipe, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="has no inputs"):
        recorded(recipe, tmp_path).go()
    write_manifest(write_inputs(tmp_path / "inputs"))
    text = tmp_path / "inputs/text/en.txt"
    text.write_text("something else\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"en\.txt has changed"):
        recorded(recipe, tmp_path).go()
    text.unlink()
    with pytest.raises(UserError, match=r"en\.txt is missing"):
        check_manifest(tmp_path / "inputs")
    assert not (tmp_path / "run").exists()
    assert MANIFEST == "SHA256SUMS", "as sha256sum --check reads it"


def test_an_archive_that_is_not_the_pinned_one_is_refused(tmp_path: Path) -> None:
    pin = Pin(registry="pypi", name="thing", version="1.0", sha256="0" * 64)
    file = tmp_path / place_of(pin) / "thing.whl"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"other")
    with pytest.raises(UserError, match=rf"is not the pinned thing 1\.0: its SHA-256 is {sha256_of(file)}"):
        PinnedArchives(tmp_path, [pin]).get("pypi", "thing")
    right = replace(pin, sha256=sha256_of(file))
    assert PinnedArchives(tmp_path, [right]).get("pypi", "thing") == file
    with pytest.raises(UserError, match=r"other of npm is not in pins\.txt"):
        PinnedArchives(tmp_path, [right]).get("npm", "other")


def test_every_pin_has_a_version_and_a_hash() -> None:
    pins = read_pins()
    assert {pin.registry for pin in pins} == {"npm", "pypi", "debian", GIVEN}
    assert all(len(bytes.fromhex(pin.sha256)) == 32 for pin in pins)
    assert len({(pin.registry, pin.name) for pin in pins}) == len(pins)


def test_core_seconds_of_a_command_are_added_to_those_before(tmp_path: Path) -> None:
    (tmp_path / "hours.json").write_text(json.dumps({"reading": 100.0, "language": 7.0}), encoding="utf-8")
    counted = CoreSeconds(tmp_path, "reading")
    busy = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", busy], check=True)
    counted.note(None)
    hours = read_hours(tmp_path)
    assert hours["language"] == 7.0
    assert hours["reading"] >= 100.3


def test_the_progress_tells_what_a_stage_is_judged_by() -> None:
    assert summary([{"step": 20, "difficulty": 0.5, "class_loss": 1.0, "latin": 0.314}]) == (
        "difficulty 0.50  % found: latin 31"
    )
    lines = [{"step": n, "loss_by_category": {"ocr": float(n)}, "auxiliary_loss": 1.0} for n in range(1, 41)]
    assert summary(lines) == "loss: ocr 30.50, attention 1.00"


def begun(recipe: RunRecipe, folder: Path) -> NanoRun:
    (folder / "run").mkdir()
    return NanoRun(recipe=recipe, where=where(folder), core_hours=2, ranks=1)


def test_a_stage_that_fails_is_told_with_the_end_of_its_log(recipe: RunRecipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"language ended with 3; .*language\.log says: no disk"):
        begun(recipe, tmp_path)._call("language", ["-c", "import sys; print('no disk'); sys.exit(3)"])


def test_of_the_log_of_a_stage_that_fails_its_own_last_line_is_told(recipe: RunRecipe, tmp_path: Path) -> None:
    run = begun(recipe, tmp_path)
    lines = "\n".join(("vl2: 3 steps", "vl2: there are no data", "Root Cause:", "rank 0", "====="))
    with pytest.raises(UserError, match=r"log says: vl2: there are no data$"):
        run._call("language", ["-c", f"print({lines!r}); exit(1)"])
    with pytest.raises(UserError, match=r"log says: a / b / c$"):  # and not what the call before said
        run._call("language", ["-c", r"print('0\na\nb\nc'); exit(1)"])


def test_a_signal_stops_the_stage_and_says_how_to_go_on(recipe: RunRecipe, tmp_path: Path) -> None:
    run = begun(recipe, tmp_path)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(UserError, match="stopped in language; the same command goes on"):
        run._call("language", ["-c", "import time; time.sleep(100)"])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children with their parent")
def test_when_the_run_is_killed_its_stage_ends_too(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    stage = f"import os, time; open({str(path)!r}, 'w').write(str(os.getpid())); time.sleep(100)"
    parent = (
        "import subprocess, sys\nfrom experiments.nano.run import _end_with_parent\n"
        f"subprocess.Popen([sys.executable, '-c', {stage!r}], preexec_fn=_end_with_parent).wait()"
    )
    run = subprocess.Popen([sys.executable, "-c", parent])
    while not (path.is_file() and path.read_text(encoding="utf-8")):
        time.sleep(0.05)
    run.kill()
    run.wait()
    pid = int(path.read_text(encoding="utf-8"))
    with suppress(OSError):  # it is gone
        while " Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"):
            time.sleep(0.05)
