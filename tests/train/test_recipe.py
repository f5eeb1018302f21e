"""Recipes: the paper's files hold the paper's numbers, and whatever is wrong in one is said in a line."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vl2.errors import UserError
from vl2.train.recipe import GroupOptions, Recipe, read_recipe, recipe_from
from vl2.train.stage import STAGES

RECIPES = Path(__file__).parents[2] / "recipes"
SIZES, NAMES = ("tiny", "small", "base"), ("alignment", "pretraining", "fine-tuning")

# arXiv 2412.10302, table 2: rate, tokens, batch, balance weight, bias step, bfloat16 optimizer; by size and stage.
PAPER = {
    "tiny/alignment": (5.4e-4, 2_000_000_000, 256, 0.001, 0.0, False),
    "tiny/pretraining": (5.4e-4, 798_500_000_000, 2304, 0.001, 0.0, False),
    "tiny/fine-tuning": (3.0e-5, 19_500_000_000, 64, 0.001, 0.0, False),
    "small/alignment": (4.2e-4, 2_000_000_000, 256, 0.001, 0.0, False),
    "small/pretraining": (4.2e-4, 808_900_000_000, 2304, 0.001, 0.0, False),
    "small/fine-tuning": (1.4e-5, 20_000_000_000, 64, 0.001, 0.0, False),
    "base/alignment": (4.5e-4, 2_000_000_000, 256, 0.0001, 0.0, True),
    "base/pretraining": (4.5e-4, 796_500_000_000, 3360, 0.0001, 0.001, True),
    "base/fine-tuning": (2.0e-5, 19_500_000_000, 64, 0.0001, 0.0, True),
}
TABLES: dict[str, Any] = {
    "model": {"name": "tiny"},
    "stage": {"like": "tiny/alignment"},
    "run": {"folder": "out"},
}


def with_changes(**tables: Any) -> dict[str, Any]:
    return {**TABLES, **{name: {**TABLES.get(name, {}), **values} for name, values in tables.items()}}


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_holds_the_papers_numbers(name: str) -> None:
    size, _, stage = name.partition("/")
    recipe = read_recipe(RECIPES / f"{name}.toml")
    found = recipe.stage
    assert found == STAGES[size][stage]
    assert PAPER[name] == (
        found.learning_rate, found.num_tokens, found.batch_size, found.balance_loss_weight, found.expert_bias_step,
        found.is_bfloat16_optimizer,
    )  # fmt: skip
    assert (found.rate_multipliers, found.weight_decay, found.clip_norm) == ({"vision": 0.1}, 0.1, 1.0)
    assert (found.betas, found.seq_len) == ((0.9, 0.95), 4096)
    assert found.frozen == (("language",) if stage == "alignment" else ())
    assert found.schedule == {"alignment": "cosine", "pretraining": "step", "fine-tuning": "constant"}[stage]
    assert (found.is_packed, found.mask_prompt) == (stage != "alignment", stage == "fine-tuning")


@pytest.mark.parametrize("size", SIZES)
def test_a_stage_starts_from_the_export_of_the_one_before(size: str) -> None:
    recipes = [read_recipe(RECIPES / size / f"{name}.toml") for name in NAMES]
    for before, after in pairwise(recipes):
        assert after.model.name == f"{before.run.folder}/export"
    assert all(recipe.data.make_mixture(recipe.stage.name) for recipe in recipes)


@pytest.mark.parametrize("name", PAPER)
def test_a_resolved_recipe_reads_back_as_it_was(name: str, tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / f"{name}.toml")
    changed = dataclasses.replace(
        recipe,
        data=dataclasses.replace(
            recipe.data, mixture="", groups=(GroupOptions(share=1.0, categories={"ocr": 0.5, "text": 2.0}),)
        ),
        run=dataclasses.replace(recipe.run, minutes=0.5, folder='odd "name" \\ Ä\n'),
    )
    (tmp_path / "resolved.toml").write_text(changed.to_toml(), encoding="utf-8")
    assert read_recipe(tmp_path / "resolved.toml") == changed


def test_a_stage_can_be_taken_from_the_table_with_changes() -> None:
    recipe = recipe_from(with_changes(stage={"batch_size": 8, "num_steps": 10}))
    expected = dataclasses.replace(STAGES["tiny"]["alignment"], batch_size=8, num_steps=10, num_tokens=None)
    assert recipe.stage == expected


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"stagee": {}}, "unknown key stagee: did you mean stage?"),
        ({"stage": {"learning_rat": 1.0}}, "unknown key stage.learning_rat: did you mean learning_rate?"),
        ({"run": {"zzz": 1}}, "unknown key run.zzz: there are folder, save_every_steps"),
        ({"stage": {"batch_size": 1.5}}, "stage.batch_size must be a whole number, got 1.5"),
        ({"stage": {"batch_size": True}}, "stage.batch_size must be a whole number, got True"),
        ({"stage": {"learning_rate": "high"}}, "stage.learning_rate must be a number, got 'high'"),
        ({"stage": {"is_packed": 1}}, "stage.is_packed must be true or false, got 1"),
        ({"stage": {"betas": [0.9]}}, "stage.betas must have 2 values, got 1"),
        ({"stage": {"frozen": "language"}}, "stage.frozen must be a list, got 'language'"),
        (
            {"stage": {"frozen": ["eyes"]}},
            "stage.frozen[0] must be one of vision, projector, language, sam, convolutions, clip, query_encoder, "
            "got 'eyes'",
        ),
        ({"stage": {"schedule": "linear"}}, "stage.schedule must be one of cosine, step, constant, got 'linear'"),
        ({"stage": {"like": "tiny/alignmnt"}}, "stage.like must be SIZE/STAGE, got 'tiny/alignmnt': did you mean"),
        ({"stage": {"num_steps": 1, "num_tokens": 1}}, "stage alignment: give either num_steps or num_tokens"),
        ({"engine": {"compute": "float16"}}, "engine.compute must be one of float32, bfloat16, got 'float16'"),
        ({"data": {"sources": [{"name": "a"}]}}, "data.sources[0].path is missing"),
        ({"data": {"sources": [{"name": "../a", "path": "x"}]}}, "the name of a source must be letters, digits,"),
        ({"data": {"sources": [{"name": "a", "path": "x"}] * 2}}, "data.sources must have different names, got a, a"),
        ({"data": {"mixture": "alignment", "groups": [{"share": 1, "categories": {}}]}}, "data: give either mixture"),
        ({"data": {"spelled": ["ocr", "letters"]}}, "data.spelled must be of "),
        ({"run": {"minutes": 0.0}}, "run.minutes must be positive, got 0"),
        ({"run": {"trackers": ["mlflow"]}}, "run.trackers[0] must be one of tensorboard, wandb, trackio, got 'mlflow'"),
        ({"guard": {"window": 4}}, "guard: spike_factor must not be negative"),
        ({"stage": {"like": "base/pretraining"}, "adapter": {"method": "lora"}}, "an adapter leaves the experts' bias"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_recipe_is_said_in_one_line(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe_from(with_changes(**tables))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "values", "name"),
    [
        ("data", {"temperature": math.inf}, "data.temperature"),
        ("data", {"groups": (GroupOptions(share=math.nan, categories={}),)}, "data.groups[0].share"),
        ("run", {"minutes": math.inf}, "run.minutes"),
        ("guard", {"spike_factor": math.inf}, "guard.spike_factor"),
        ("engine", {"timeout_s": math.inf}, "engine.timeout_s"),
    ],
)
def test_a_number_without_end_is_refused(table: str, values: dict[str, Any], name: str) -> None:
    recipe = recipe_from(TABLES)
    changed = dataclasses.replace(getattr(recipe, table), **values)
    with pytest.raises(UserError, match=rf"^{re.escape(name)} must be a finite number, got (inf|nan)$"):
        dataclasses.replace(recipe, **{table: changed})


@pytest.mark.parametrize(
    ("engine", "encoder"),
    [
        ({}, "none"),
        ({"activation_checkpointing": True}, "blocks"),
        ({"activation_checkpointing": True, "encoder_recompute": "none"}, "none"),
        ({"encoder_recompute": "whole"}, "whole"),
    ],
)
def test_the_encoder_is_computed_again_as_the_layers_are_unless_it_is_said(engine: Any, encoder: str) -> None:
    assert recipe_from(with_changes(engine=engine)).engine.recomputed_encoder == encoder


@pytest.mark.parametrize("name", PAPER)
def test_what_the_paper_leaves_open_is_marked_as_ours_and_nothing_else_is(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    stage = text.split("[stage]")[1].split("[engine]")[0]
    ours = {line.split(" = ")[0] for line in stage.splitlines() if "# ours" in line}
    assert ours == {"warmup_steps", "final_rate_ratio", "eps"}


def test_a_missing_table_is_named() -> None:
    with pytest.raises(UserError, match=r"^run is missing$"):
        recipe_from({name: table for name, table in TABLES.items() if name != "run"})


@pytest.mark.parametrize(("text", "says"), [("a = [", "is not valid TOML"), ("x = 1", "unknown key x")])
def test_a_file_that_cannot_be_read_is_named(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=says) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)
    with pytest.raises(UserError, match=r"cannot read .*: No such file or directory"):
        read_recipe(tmp_path / "none.toml")


def test_an_unknown_mixture_is_refused_when_it_is_needed() -> None:
    recipe: Recipe = recipe_from(with_changes(stage={"name": "mine"}))
    with pytest.raises(
        UserError, match=r"data\.mixture must be one of alignment, pretraining, fine-tuning, got 'mine'"
    ):
        recipe.data.make_mixture(recipe.stage.name)


def test_reading_a_recipe_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom vl2.train.recipe import read_recipe\n"
        f"read_recipe({str(RECIPES / 'base/pretraining.toml')!r})\n"
        "sys.exit(' '.join(name for name in ('torch', 'numpy', 'PIL') if name in sys.modules) or None)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
