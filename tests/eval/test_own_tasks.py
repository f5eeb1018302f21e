"""The tests that run without a public benchmark: what they take of their sets, and how they score it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.fixtures import SIZE, cell, json_file, jsonl, parquet, picture_file, png, tsv
from vl2.errors import UserError
from vl2.eval.choose_items import choose
from vl2.eval.during_training import TaskEvaluation
from vl2.eval.held_out import is_held_out
from vl2.eval.task import DataSource, Item
from vl2.eval.task_catalog import find_task
from vl2.infer.vlm import VLM


def items(name: str, data: Path, split: str | None = None) -> list[Item]:
    return list(find_task(name).items(DataSource(data=data, split=split)))


def score(name: str, item: Item, answer: str) -> float:
    return find_task(name).protocol()[1].score(item, answer).value


def kept_back(kind: str) -> tuple[str, str]:
    """Return the name of a group that is kept back from training, and of one that is not."""
    names = [f"group {n}" for n in range(100)]
    return next(n for n in names if is_held_out(kind, n)), next(n for n in names if not is_held_out(kind, n))


def test_easy_vqa_is_read_as_its_package_lays_it_out(tmp_path: Path) -> None:
    picture_file(tmp_path / "test/images/7.png")
    json_file(tmp_path / "test/questions.json", [["what color is the shape?", "red", 7], ["is it blue?", "no", 7]])
    first, second = items("easy_vqa", tmp_path)
    assert (first.gold, first.part, second.part) == (["red"], "shape or colour", "yes or no")
    assert first.cluster == second.cluster
    assert score("easy_vqa", first, "Red.") == 1.0


def test_nlvr_asks_about_the_groups_that_training_never_sees(tmp_path: Path) -> None:
    kept, seen = kept_back("nlvr")
    row = {"image": cell(), "sentence": "There is a box.", "label": True}
    groups = [{"id": str(n), "group": group, **row} for n, group in enumerate((kept, kept, seen))]
    parquet(tmp_path / "dev-00000-of-00001.parquet", groups)
    found = items("nlvr", tmp_path)
    assert [item.cluster for item in found] == [kept, kept]
    assert [score("nlvr", found[0], answer) for answer in ("Yes.", "yes, there is", "No.", "")] == [1.0, 1.0, 0.0, 0.0]


def left_out(name: str, data: Path, *, whole: bool = False) -> dict[str, int]:
    source = DataSource(data=data, whole=whole)
    return {why.why: count for why, count in choose(find_task(name), source, None).left_out.items()}


def test_nlvr_and_sroie_say_how_many_items_they_left_out_and_can_ask_all(tmp_path: Path) -> None:
    for kind, file in (("nlvr", "dev-00000-of-00001.parquet"), ("sroie", "train-00000-of-00001.parquet")):
        kept, seen = kept_back(kind)
        row = {"image": cell(), "sentence": "There is a box.", "label": True, "lines": [{"text": "A"}], "date": "1"}
        row |= {"address": "", "total": "3"}
        rows = [{"id": str(n), "group": g, "company": g, **row} for n, g in enumerate((kept, seen, seen, seen, seen))]
        parquet(tmp_path / kind / file, rows)
    assert left_out("nlvr", tmp_path) == {"of groups that are kept for training": 4}
    assert left_out("sroie_lines", tmp_path) == {"of shops that are kept for training": 4}
    # Of each receipt three fields have a gold answer.
    expected = {"of shops that are kept for training": 12, "without a gold answer in the data": 5}
    assert left_out("sroie_fields", tmp_path) == expected
    assert len(items("nlvr", tmp_path)) == 1
    for name, count in (("nlvr", 5), ("sroie_lines", 5), ("sroie_fields", 15)):
        assert len(list(find_task(name).items(DataSource(data=tmp_path, whole=True)))) == count
    assert left_out("nlvr", tmp_path, whole=True) == {}
    assert left_out("sroie_fields", tmp_path, whole=True) == {"without a gold answer in the data": 5}


def test_every_item_of_the_data_is_asked_or_counted_as_left_out(tmp_path: Path) -> None:
    """Of sets that tests here write, with rows of other splits, folds, sizes and golds among them."""
    tables = {"small": "City,People\r\nBergen,300\r\n", "wide": ",".join("abcdefgh") + "\r\n" + ",".join("12345678")}
    parquet(tmp_path / "w/tables-0.parquet", [{"table_id": key, "csv": text} for key, text in tables.items()])
    folds = [("a", "small", [1]), ("b", "small", [2]), ("c", "wide", [1]), ("d", "wide", [2]), ("e", "gone", [1])]
    question = {"question": "How many?", "answers": ["300"]}
    asked = [{"id": id, "table_id": table, "dev_folds": fold, **question} for id, table, fold in folds]
    parquet(tmp_path / "w/questions-0.parquet", asked)
    expected = {"about tables too large to be drawn legibly": 3, "of folds that are kept for training": 1}
    assert left_out("wikitables", tmp_path / "w") == expected
    assert sum(left_out("wikitables", tmp_path / "w", whole=True).values()) == 3
    box = {"name": "RBC", "x0": 0, "y0": 0, "x1": 30, "y1": 40}
    photo = {"image": cell(), "width": SIZE[0], "height": SIZE[1], "objects": [box]}
    photos = [{"id": str(n), "upstream_split": s, **photo} for n, s in enumerate(("train", "valid", "test"))]
    parquet(tmp_path / "p/bccd.parquet", photos)
    assert left_out("detect_photos", tmp_path / "p") == {"of upstream's other splits": 2}
    assert left_out("detect_photos", tmp_path / "p", whole=True) == {}
    mmmu = {"question": "?", "image": png(), "A": "a", "B": "b", "answer": "A", "category": "Art"}
    tsv(
        tmp_path / "m/MMMU_DEV_VAL.tsv", [{"index": n, "split": s, **mmmu} for n, s in enumerate(("dev", "validation"))]
    )
    assert left_out("mmmu", tmp_path / "m") == {"of other splits": 1}
    assert not choose(find_task("mmmu"), DataSource(data=tmp_path / "m"), None).is_subset
    assert choose(find_task("wikitables"), DataSource(data=tmp_path / "w"), None).is_subset


@pytest.mark.parametrize("name", ["nlvr", "sroie_lines"])
def test_a_split_of_ones_own_that_is_not_there_is_never_replaced(tmp_path: Path, name: str) -> None:
    parquet(tmp_path / "dev-00000-of-00001.parquet", [{"id": "1"}])
    with pytest.raises(UserError, match=r"has no test\*"):
        items(name, tmp_path, split="test")


def test_sroie_asks_for_the_lines_and_the_fields_of_shops_that_training_never_sees(tmp_path: Path) -> None:
    kept, seen = kept_back("sroie")
    lines = [{"text": "SHOP"}, {"text": "TOTAL 3.50"}]
    row = {"image": cell(), "lines": lines, "date": "1/2/2018", "address": "", "total": "3.50"}
    shops = [{"id": str(n), "company": shop, **row} for n, shop in enumerate((kept, seen))]
    parquet(tmp_path / "train-00000-of-00001.parquet", shops)
    (whole,) = items("sroie_lines", tmp_path)
    assert [score("sroie_lines", whole, a) for a in ("total 3.50\nshop", "SHOP", "")] == [1.0, 2 / 3, 0.0]
    fields = items("sroie_fields", tmp_path)
    assert [(item.part, item.gold) for item in fields] == [
        ("company", [kept]), ("date", ["1/2/2018"]), ("total", ["3.50"]),
    ]  # fmt: skip


def test_wikitables_draws_small_tables_of_one_development_fold(tmp_path: Path) -> None:
    tables = {"small": "City,People\r\nBergen,300\r\n", "wide": ",".join("abcdefgh") + "\r\n" + ",".join("12345678")}
    rows = [{"table_id": key, "csv": text} for key, text in tables.items()]
    parquet(tmp_path / "tables-00000-of-00001.parquet", rows)
    question = {"question": "How many live in Bergen?", "answers": ["300"]}
    folds = [("a", "small", [1]), ("b", "small", [2]), ("c", "wide", [1])]
    asked = [{"id": id, "table_id": table, "dev_folds": fold, **question} for id, table, fold in folds]
    parquet(tmp_path / "questions-00000-of-00001.parquet", asked)
    (item,) = items("wikitables", tmp_path)
    assert item.id == "a"
    assert score("wikitables", item, "300") == 1.0
    several = Item(id="x", question="?", gold=["Bergen", "Oslo"])
    assert [score("wikitables", several, a) for a in ("Oslo, Bergen", "Oslo", "Oslo, Bergen, Rome")] == [1.0, 0.0, 0.0]


def test_detection_asks_for_every_label_of_a_photo_of_the_test_split(tmp_path: Path) -> None:
    box = {"x0": 0, "y0": 0, "x1": 30, "y1": 40}
    row = {"image": cell(), "width": SIZE[0], "height": SIZE[1]}
    photos = [
        {"id": split, "upstream_split": split, "objects": [{"name": "RBC", **box}, {"name": "WBC", **box}], **row}
        for split in ("train", "test")
    ]
    parquet(tmp_path / "bccd.parquet", photos)
    found = items("detect_photos", tmp_path)
    assert [item.id.partition("-")[0] for item in found] == ["test", "test"]
    right = "<|ref|>x<|/ref|><|det|>[[0, 0, 500, 999]]<|/det|>"
    assert [score("detect_photos", found[0], a) for a in (right, right + right, "none")] == [1.0, 2 / 3, 0.0]


def test_records_of_ones_own_are_a_benchmark(tmp_path: Path) -> None:
    picture_file(tmp_path / "1.png")
    user = [{"type": "image", "image": 0}, {"type": "text", "text": "What colour?"}]
    answer = [{"type": "text", "text": "Red"}]
    record = {
        "id": "r1", "source": "mine", "category": "vqa", "language": "en", "licence": "MIT", "objects": [],
        "messages": [{"role": "user", "content": user}, {"role": "assistant", "content": answer}],
        "images": [{"path": "1.png", "width": SIZE[0], "height": SIZE[1]}],
    }  # fmt: skip
    (item,) = items("records", jsonl(tmp_path / "mine.jsonl", [record]))
    assert (item.question, item.gold) == ("What colour?", ["Red"])
    assert [score("records", item, a) for a in ("red.", "blue")] == [1.0, 0.0]


@pytest.mark.parametrize("name", ["count_objects", "presence", "locate_objects"])
def test_a_drawn_test_is_the_same_every_time_and_a_limit_takes_its_first_items(name: str) -> None:
    from itertools import islice

    task = find_task(name)
    three, two = (list(islice(task.items(DataSource()), count)) for count in (3, 2))
    assert [(i.id, i.question, i.gold, i.images) for i in three[:2]] == [
        (i.id, i.question, i.gold, i.images) for i in two
    ]


def test_a_few_tasks_watch_a_training_and_change_nothing(nano: VLM) -> None:
    watch = TaskEvaluation(("count_objects", "presence"), limit=2, max_new_tokens=2)
    before = {name: weight.clone() for name, weight in nano.model.state_dict().items()}
    figures = watch(nano.model, nano.processor, 1)
    assert list(figures) == ["count_objects/score", "presence/accuracy"]
    assert figures == watch(nano.model, nano.processor, 2)
    assert all(weight.equal(before[name]) for name, weight in nano.model.state_dict().items())
