"""A whole stage from a recipe: stores by category, going on after a stop, the same records however it runs."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.data.sample_records import good_records
from tests.datasets.layouts import layout
from vl2.cli.main import run
from vl2.curate.stage_recipe import read_recipe
from vl2.data.mixture import STAGE_MIXTURES
from vl2.data.store import open_random, write_records
from vl2.datasets import CATALOG
from vl2.errors import UserError
from vl2.synth.browser import find_browser
from vl2.synth.catalog import make_source
from vl2.synth.source import generate

RECIPE = """
seed = 3
shard_records = 4

[[source]]
name = "shapes"
draw = "scene"
count = 9
settings = {tasks = ["name", "ground"]}

[[source]]
name = "names"
draw = "emoji"
count = 5
repeat = {languages = [["en"], ["zh"]]}

[[source]]
name = "drawn-shapes"
convert = "easy_vqa"
from = "easy_vqa"

[[source]]
name = "own"
records = "own.jsonl"
count = 6
filter = [{name = "too_long", limit = 3, unit = "characters", categories = ["text"]}]

[[filter]]
name = "damaged"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    layout(tmp_path, "easy_vqa", ["train/images/0.png", "train/images/1.png"])
    write_records(good_records(8), "own.jsonl")
    (tmp_path / "stage.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


def build(to: str, *more: str) -> int:
    return run(["data", "build", "stage.toml", "--to", to, "--processes", "1", *more])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_stage_is_built_by_category_and_goes_on_after_a_stop(here: Path, capsys) -> None:
    assert build("whole", "--json") == 0
    report: dict[str, Any] = {each["name"]: each for each in json.loads(capsys.readouterr().out)["sources"]}
    assert {name: each["kept"] for name, each in report.items()} == {
        "shapes": 9, "names": 5, "drawn-shapes": 2, "own": 5,
    }  # fmt: skip
    assert report["drawn-shapes"]["dropped"] == {"convert": 2}
    assert report["own"]["dropped"] == {"too_long": 1}
    whole = here / "whole"
    categories = {path.name for path in whole.iterdir()} - {"reports"}
    records = [each for category in sorted(categories) for each in open_random(str(whole / category))]
    assert len({each.id for each in records}) == len(records) == 21
    for category in categories:
        assert {each.category for each in open_random(str(whole / category))} == {category}
    dropped = (whole / "reports" / "own.dropped.ndjson").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["filter"] for line in dropped] == ["too_long"]
    assert sorted({each.language for each in records if each.id.startswith("names/")}) == ["en", "zh"]

    # Stopped while the second source was moved to its places; the first and the last are there.
    assert build("stopped", "-q") == 0
    (here / "stopped" / "reports" / "names.json").unlink()
    (here / "stopped" / "names.building" / "caption").mkdir(parents=True)
    capsys.readouterr()
    assert build("stopped") == 0
    lines = capsys.readouterr().err.splitlines()
    assert ["(there already)" in line for line in lines] == [True, False, True, True]
    assert tree(here / "stopped") == tree(whole)


def test_a_source_made_with_other_settings_is_not_taken_for_done(here: Path, capsys) -> None:
    assert build("stage", "-q") == 0
    (here / "stage.toml").write_text(RECIPE.replace("count = 9", "count = 8"), encoding="utf-8")
    assert build("stage", "-q") == 1
    assert "shapes was built with other settings: delete" in capsys.readouterr().err


def test_ray_builds_what_this_machine_builds(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    start = RECIPE.partition('[[source]]\nname = "names"')[0]
    (here / "stage.toml").write_text(start + '[[filter]]\nname = "damaged"\n', encoding="utf-8")
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", object_store_memory=80 * 2**20)
    try:
        assert build("on-ray", "--ray", "-q") == 0
    finally:
        ray.shutdown()
    assert build("local", "-q") == 0
    assert tree(here / "on-ray") == tree(here / "local")


TABLES = """
[[source]]
name = "tables"
convert = "wikitables"
from = "wikitables"
settings = {draw_tables = true}
"""


def test_the_tables_of_a_set_are_drawn_where_a_recipe_says_so(here: Path) -> None:
    layout(here, "wikitables")
    (here / "stage.toml").write_text(TABLES, encoding="utf-8")
    assert build("drawn", "-q") == 0
    assert all(len(each.images) == 1 for each in open_random("drawn/table_chart"))
    (here / "stage.toml").write_text(TABLES.replace("true", "false"), encoding="utf-8")
    assert build("written", "-q") == 0
    assert not any(each.images for each in open_random("written/text"))
    (here / "stage.toml").write_text(TABLES.replace("true", "1"), encoding="utf-8")
    with pytest.raises(UserError, match="draw_tables of tables must be true or false, got 1"):
        read_recipe("stage.toml")
    out = ["data", "convert", "wikitables", "wikitables", "out.tar", "--draw-tables", "-q"]
    assert run(out) == 0
    assert [each.images for each in open_random("out.tar")] == [each.images for each in open_random("drawn")]


@pytest.mark.parametrize(
    ("changed", "to", "message"),
    [
        ("draw", "drew", "source shapes has no setting drew: did you mean draw?"),
        ('"scene"', '"seen"', "a synthetic source is one of"),
        ("tasks =", "task =", "scene has no setting task: did you mean tasks?"),
        ("count = 9", "", "source shapes is drawn: it needs a count"),
        ("count = 9", 'count = "many"', "count of source shapes must be a whole number, got 'many'"),
        ('convert = "easy_vqa"', 'convert = "easyvqa"', "no dataset is called 'easyvqa': did you mean easy_vqa?"),
        (
            'from = "easy_vqa"',
            'from = "easy_vqa"\nsettings = {draw_tables = true}',
            "source drawn-shapes is not drawn: it takes no settings",
        ),
        ('from = "easy_vqa"', "", "source drawn-shapes is converted: it needs from"),
        ('records = "own.jsonl"', "", "source own must have one of draw, convert, hub, records, it has 0"),
        ('"own"', '"names"', "two sources are called names"),
        ('"own"', '"a/b"', "the name of a source must be usable as a file name, got 'a/b'"),
        ('"damaged"', '"damged"', "no filter is called 'damged': did you mean damaged?"),
        ("shard_records = 4", "shards = 4", "a stage has no setting shards"),
        ("seed = 3", "seed = ", "is not valid TOML"),
        ('languages = [["en"], ["zh"]]', 'languages = "en"', "repeat of names is one setting and a list of its values"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_one_line(changed: str, to: str, message: str, here: Path, capsys) -> None:
    assert changed in RECIPE
    (here / "stage.toml").write_text(RECIPE.replace(changed, to), encoding="utf-8")
    assert build("stage") == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("vl2: stage.toml")
    assert said.count("\n") == 1
    assert not (here / "stage").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage.toml"], "say where the stage goes: --to FOLDER"),
        (["stage.toml", "out.tar", "--to", "x"], "a recipe holds the settings of its sources"),
        (["none.toml", "--to", "x"], "cannot read none.toml: No such file or directory"),
        (["scene", "out.tar", "--to", "x"], "--to is for a recipe"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(arguments: list[str], message: str, here: Path, capsys) -> None:
    assert run(["data", "build", *arguments]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_setting_of_a_source_within_a_source_is_reached(here: Path) -> None:
    text = '[[source]]\nname = "marks"\ndraw = "visual_prompt"\ncount = 2\nsettings = {base = {languages = ["zh"]}}\n'
    (here / "stage.toml").write_text(text, encoding="utf-8")
    assert build("stage", "-q") == 0
    assert {each.language for each in open_random("stage/visual_prompt")} == {"zh"}
    out = ["marks.jsonl", "--count", "2", "--processes", "1", "--set", "base.languages=en", "-q"]
    assert run(["data", "build", "visual_prompt", *out]) == 0
    assert {each.language for each in open_random("marks.jsonl")} == {"en"}


RECIPES = Path(__file__).parents[2] / "recipes" / "data"
# What a recipe takes from outside: built-in things, or none, do here.
GIVEN = ("art", "texts_en", "texts_zh", "tables", "photographs", "hand_folders", "style_sheets")


# Of what is slow to draw, enough for every category.
FEW = {
    "plot_code": 1,
    "web_page": 1,
    "album": 1,
    "article": 8,
    "document": 12,
}


def with_built_in(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in GIVEN}
    return {key: with_built_in(value) if isinstance(value, dict) else value for key, value in kept.items()}


@cache
def categories_drawn(draw: str, settings: str, count: int) -> frozenset[str]:
    """Return what a source, its settings in JSON, makes: once for all stages that ask it for the same."""
    return frozenset(each.category for each in generate(make_source(draw, json.loads(settings)), count))


@pytest.mark.parametrize("stage", sorted(STAGE_MIXTURES))
def test_the_recipe_of_a_stage_makes_every_category_of_its_mixture(stage: str) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("vl_convert")
    made: set[str] = set()
    for entry in read_recipe(str(RECIPES / f"{stage}.toml")).sources:
        if entry.convert:
            made.add(CATALOG[entry.convert].category)
        elif entry.draw == "web_page" and find_browser() is None:
            made |= {{"code": "web_to_code", "locate": "gui"}[task] for task in entry.settings["tasks"]}
        else:
            count = FEW.get(entry.draw, 24)
            made |= categories_drawn(entry.draw, json.dumps(with_built_in(entry.runs()[0]), sort_keys=True), count)
    assert STAGE_MIXTURES[stage].categories == made


def test_a_stage_in_jsonl_is_built_again(here: Path, capsys) -> None:
    start = RECIPE.partition('[[source]]\nname = "names"')[0].replace("shapes", "sha[p]es")
    (here / "stage.toml").write_text(f'format = "jsonl"\n{start}', encoding="utf-8")
    assert build("stage", "-q") == 0
    first = tree(here / "stage")
    assert any("-images/" in name for name in first)
    # Killed while it moved its files: some are in their places, others are not.
    (here / "stage" / "reports" / "sha[p]es.json").unlink()
    next((here / "stage" / "caption").glob("*.jsonl")).unlink()
    assert build("stage", "-q") == 0, capsys.readouterr().err
    assert tree(here / "stage") == first


def test_records_that_no_file_can_hold_are_left_out(here: Path, capsys) -> None:
    good = good_records(2)
    half = {**good[1].to_dict(), "id": "half \ud83d"}
    lines = [json.dumps(each) for each in (good[0].to_dict(), half, good[1].to_dict())]
    (here / "half.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (here / "stage.toml").write_text('[[source]]\nname = "own"\nrecords = "half.jsonl"\n', encoding="utf-8")
    assert build("stage", "--json") == 0
    [report] = json.loads(capsys.readouterr().out)["sources"]
    assert (report["kept"], report["dropped"]) == (2, {"read": 1})
