"""Sets in the layout of the Hugging Face hub as sources: any columns, read as streams, going on exactly after kills."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from tests.curate.kill_build import (
    RECIPE,
    answers,
    expected_answers,
    hub_row,
    kill_while_building,
    num_parts,
    tree,
    write_set,
)
from tests.datasets.layouts import picture, said, write_parquet
from vl2.cli.main import run
from vl2.curate import part_builder
from vl2.curate.filters.filter_catalog import make_filters
from vl2.curate.filters.filter_chain import run_filters
from vl2.curate.source_parts import divide, part_records
from vl2.curate.stage_recipe import read_recipe
from vl2.data.record import Record
from vl2.data.store import open_random
from vl2.datasets.hub_sets import HubSettings, hub_files, hub_location, hub_parts, read_hub_part
from vl2.errors import UserError

ROWS = 2_000

pytest.importorskip("pyarrow")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "charts", ROWS)
    (tmp_path / "stage.toml").write_text(RECIPE.format(shard_records=100), encoding="utf-8")
    return tmp_path


def build(to: str, *more: str, processes: int = 1) -> int:
    return run(["data", "build", "stage.toml", "--to", to, "--processes", str(processes), *more])


@pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by group")
def test_a_build_that_is_killed_at_random_goes_on_exactly(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build("whole", "--json") == 0
    [report] = json.loads(capsys.readouterr().out)["sources"]
    assert report["dropped"] == {"convert": 4, "too_long": 2}
    assert answers(here / "whole") == expected_answers(ROWS)

    rng = random.Random(7)
    for _ in range(3):
        assert kill_while_building(here, "killed", rng, most_parts=4) >= 1
    assert 3 <= num_parts(here, "killed") < 24
    assert build("killed", "-q") == 0
    assert answers(here / "killed") == expected_answers(ROWS)
    assert tree(here / "killed") == tree(here / "whole")


def test_a_build_goes_on_from_any_part_and_does_no_part_twice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build("whole", "-q") == 0
    numbers: list[int] = []
    finish_part = part_builder.finish_part

    class Stopped(Exception):
        pass

    def stop_now_and_then(plan: Any, part: Any, *rest: Any) -> None:
        if part.number % 5 == 4 and numbers.count(part.number) == 0:
            numbers.append(part.number)
            raise Stopped  # its shards are written, its report is not
        finish_part(plan, part, *rest)
        numbers.append(part.number)

    monkeypatch.setattr(part_builder, "finish_part", stop_now_and_then)
    stops = 0
    while not (here / "stopped" / "reports" / "charts.json").is_file():
        try:
            assert build("stopped", "-q") == 0
        except Stopped:
            stops += 1
    assert stops == 4
    assert sorted(numbers) == sorted([*range(24), 4, 9, 14, 19])
    assert tree(here / "stopped") == tree(here / "whole")


def test_a_build_that_is_killed_while_it_publishes_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build("whole", "-q") == 0
    moves: list[str] = []

    class Stopped(Exception):
        pass

    def move_three(source: Path, target: Path) -> None:
        if len(moves) == 3:
            raise Stopped
        moves.append(target.name)
        Path(source).rename(target)

    with monkeypatch.context() as patch:
        patch.setattr("vl2.curate.stage_build.os.replace", move_three)
        with pytest.raises(Stopped):
            build("stopped", "-q")
    assert build("stopped", "-q") == 0
    assert tree(here / "stopped") == tree(here / "whole")


def test_another_recipe_or_set_begins_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stop(plan: Any, part: Any, *rest: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(part_builder, "finish_part", stop)
        with pytest.raises(Stopped):
            build("stage", "-q")
    assert (here / "stage" / "charts.building" / "table_chart").is_dir()
    write_parquet(here / "charts" / "data" / "train-00007-of-00008.parquet", [hub_row(1750)])
    assert build("stage", "-q") == 0
    assert answers(here / "stage") == expected_answers(1751)


def test_processes_build_what_one_process_builds(here: Path) -> None:
    shutil.rmtree(here / "charts")
    write_set(here / "charts", 720)
    assert build("one", "-q") == 0
    assert build("two", "-q", processes=2) == 0
    assert tree(here / "two") == tree(here / "one")


@pytest.mark.parametrize("first", ["too_long", "duplicate_image"])
def test_a_filter_that_compares_judges_parts_as_it_judges_the_whole(here: Path, first: str) -> None:
    limit = 'name = "too_long", limit = 30, unit = "characters"'
    compare = 'name = "duplicate_image", categories = ["table_chart"]'
    both = f"{{{limit}}}, {{{compare}}}" if first == "too_long" else f"{{{compare}}}, {{{limit}}}"
    text = RECIPE.format(shard_records=100).replace(f"{{{limit}}}", both)
    (here / "stage.toml").write_text(text, encoding="utf-8")
    shutil.rmtree(here / "charts")
    write_set(here / "charts", 720)
    assert build("stage", "-q") == 0

    recipe = read_recipe("stage.toml")
    [entry] = recipe.sources
    read = chain.from_iterable(part_records(recipe, entry, part, Counter()) for part in divide(recipe, entry))
    filters = make_filters(entry.filters, lambda: pytest.fail("no processor is needed"))
    ledger = here / "whole.ndjson"
    whole = list(run_filters(read, filters, ledger=ledger))
    assert [record.id for record in open_random(str(here / "stage" / "table_chart"))] == [r.id for r in whole]
    verdicts = [line for line in ledger.read_text(encoding="utf-8").splitlines() if not json.loads(line)["kept"]]
    written = (here / "stage" / "reports" / "charts.dropped.ndjson").read_text(encoding="utf-8").splitlines()
    assert written == verdicts
    assert {json.loads(line)["filter"] for line in written} >= {"duplicate_image"}


def records(
    folder: Path, rows: list[dict[str, Any]], language: str = "en", **settings: Any
) -> tuple[list[Record], list[str]]:
    write_parquet(folder / "set" / "train.parquet", rows)
    made = HubSettings(**{"category": "vqa", **settings})
    [part] = hub_parts(hub_files(str(folder / "set"), "train"), made.columns.values(), 100, None)
    found = list(read_hub_part("someone/set", part, made, language))
    return [r for r in found if isinstance(r, Record)], [p.why for p in found if not isinstance(p, Record)]


IMAGE = {"bytes": picture(), "path": "a.png"}


def test_images_questions_and_answers_by_any_name(tmp_path: Path) -> None:
    rows = [
        {"pics": [IMAGE, IMAGE], "q": "Same?", "a": ["yes", "Yes."]},
        {"pics": [], "q": "1 + 1?", "a": ["2"]},
        {"pics": [{"bytes": None, "path": "b.png"}], "q": "Where?", "a": ["here"]},
    ]
    columns = {"images": "pics", "question": "q", "answer": "a"}
    found, problems = records(tmp_path, rows, columns=columns, licence="MIT", short_answers=True)
    assert [said(record)[0].split("\n")[0] for record in found] == ["<0><1>Same?", "1 + 1?"]
    assert [said(record)[1] for record in found] == ["yes", "2"]
    assert [record.category for record in found] == ["vqa", "text"]
    assert {(record.source, record.licence, record.language) for record in found} == {("someone/set", "MIT", "en")}
    assert problems == ["image 0 of row 2 has no bytes"]


def test_a_prompt_stands_for_a_question_and_a_number_is_an_answer(tmp_path: Path) -> None:
    rows = [{"image": IMAGE, "count": 3}, {"image": IMAGE, "count": None}]
    settings = {"columns": {"images": "image", "answer": "count"}, "prompt": "How many?"}
    found, problems = records(tmp_path, rows, language="fr", **settings)
    assert [said(record) for record in found] == [["<0>How many?", "3"]]
    assert found[0].language == "fr"
    assert problems == ["the answer must be a text or a number, got NoneType"]


@pytest.mark.parametrize(
    "conversations",
    [
        [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}],
        [{"user": "What is it?", "assistant": "A cat.", "source": "a"}],
        [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A cat."}],
    ],
)
def test_conversations_of_both_kinds(tmp_path: Path, conversations: list[dict[str, str]]) -> None:
    rows = [{"image": IMAGE, "talk": conversations}]
    found, _ = records(tmp_path, rows, columns={"images": "image", "conversations": "talk"})
    assert [said(record) for record in found] == [["<0>What is it?", "A cat."]]


def test_conversations_in_parts(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    found, _ = records(tmp_path, [{"image": IMAGE, "talk": talk}], columns={"images": "image", "conversations": "talk"})
    assert [said(record) for record in found] == [["<0>What is it?", "A cat."]]


def test_texts_are_documents(tmp_path: Path) -> None:
    found, _ = records(tmp_path, [{"body": "Once upon a time."}], columns={"text": "body"}, category="text")
    assert found[0].messages[0].role == "document"
    assert said(found[0]) == ["Once upon a time."]


@pytest.mark.parametrize(
    ("columns", "settings", "message"),
    [
        ({"image": "image"}, {}, "columns has no entry image: there are images, question"),
        ({"images": "image"}, {}, "columns must name one of answer, conversations and text, it names 0"),
        ({"answer": "a", "text": "t"}, {}, "it names 2"),
        ({"answer": "a"}, {}, "an answer needs a question"),
        ({"answer": "a", "question": "q"}, {"prompt": "Why?"}, "an answer needs a question"),
        ({"text": "t"}, {"prompt": "Why?"}, "nothing else takes one"),
        ({"text": "t", "images": "i"}, {}, "a text is a document without images"),
        ({"text": "t"}, {"short_answers": True}, "short_answers is for question and answer"),
        ({"text": "t"}, {"category": "pictures"}, "category must be one of"),
        ({"text": 1}, {}, "columns must be a table"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(columns: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HubSettings(**{"category": "text", "columns": columns, **settings})


def test_shards_are_found_by_split_and_subset(tmp_path: Path) -> None:
    for name in ("en/train-00000-of-00001", "en/test-00000-of-00001", "default/train/0000", "top/train", "top/val"):
        write_parquet(tmp_path / f"{name}.parquet", [{"text": name}])
    set_folder = str(tmp_path)

    def names(split: str, subset: str = "") -> list[str]:
        return [file.path.removeprefix(f"{tmp_path}/") for file in hub_files(set_folder, split, subset)]

    assert names("test") == ["en/test-00000-of-00001.parquet"]
    assert names("train", "default") == ["default/train/0000.parquet"]
    assert names("train", "top") == ["top/train.parquet"]
    with pytest.raises(UserError, match="several subsets with the split train, give one: default, en, top"):
        names("train")
    with pytest.raises(UserError, match="no Parquet files of the split 'dev': there are test, train, val"):
        names("dev")


def test_a_set_is_on_the_hub_or_in_a_folder() -> None:
    assert hub_location("someone/charts", "", "") == "hf://datasets/someone/charts"
    assert hub_location("someone/charts", "", "abc123") == "hf://datasets/someone/charts@abc123"
    assert hub_location("charts", "sets/charts", "") == "sets/charts"
    with pytest.raises(UserError, match="a set on the hub is called OWNER/NAME, got 'charts'"):
        hub_location("charts", "", "")


def test_parts_are_whole_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    for number, rows in enumerate((10, 25)):
        table = pa.Table.from_pylist([{"text": f"{number}.{row}"} for row in range(rows)])
        pq.write_table(table, tmp_path / "set" / f"train-{number}.parquet", row_group_size=4)
    files = hub_files(str(tmp_path / "set"), "train")

    def shape(part_rows: int, limit: int | None = None) -> list[tuple[int, int, int]]:
        return [(len(p.groups), p.first_row, p.num_rows) for p in hub_parts(files, ["text"], part_rows, limit)]

    assert shape(9) == [(2, 0, 8), (1, 8, 2), (2, 10, 8), (2, 18, 8), (3, 26, 9)]
    assert shape(1)[:3] == [(1, 0, 4), (1, 4, 4), (1, 8, 2)]
    assert shape(100, 13) == [(3, 0, 10), (7, 10, 3)]
    settings = HubSettings(columns={"text": "text"}, category="text")
    for part_rows, limit in ((1, None), (9, None), (100, 13)):
        parts = hub_parts(files, ["text"], part_rows, limit)
        texts = [
            said(r)[0] for part in parts for r in read_hub_part("a/b", part, settings, "en") if isinstance(r, Record)
        ]
        everything = [f"0.{row}" for row in range(10)] + [f"1.{row}" for row in range(25)]
        assert texts == everything[:limit]


def test_a_column_that_is_not_there_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (here / "stage.toml").read_text(encoding="utf-8").replace('"label"', '"answer"')
    (here / "stage.toml").write_text(text, encoding="utf-8")
    assert build("stage") == 1
    said = capsys.readouterr().err
    assert "has no column answer, it has image, query, label" in said
    assert said.count("\n") == 1
