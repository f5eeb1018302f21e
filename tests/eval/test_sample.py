"""A limit takes a sample that is spread over the parts, the same each time, and within any larger one."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.eval.fixtures import cell, json_file, parquet, picture_file, png, tsv
from vl2.eval.choose_items import ItemKey, choose, limited, sample_ids
from vl2.eval.task import DataSource, Item
from vl2.eval.task_catalog import find_task


def keys(**sizes: int) -> list[ItemKey]:
    """Return items in the order of their parts, as files have them."""
    return [ItemKey(id=f"{part}-{n}", part=part, cluster="") for part, size in sizes.items() for n in range(size)]


def parts_of(ids: frozenset[str]) -> Counter[str]:
    return Counter(id.rpartition("-")[0] for id in ids)


@pytest.mark.parametrize("limit", [1, 2, 7, 10, 33, 100, 250])
def test_every_part_has_its_share_to_within_one_item(limit: int) -> None:
    sizes = {"human": 125, "augmented": 100, "rare": 25}
    taken = parts_of(sample_ids(keys(**sizes), limit))
    assert sum(taken.values()) == limit
    for part, size in sizes.items():
        assert abs(taken[part] - limit * size / 250) <= 1


def test_two_halves_are_taken_evenly() -> None:
    for limit in (2, 10, 64):
        assert parts_of(sample_ids(keys(human=1250, augmented=1250), limit)) == {
            "human": limit / 2,
            "augmented": limit / 2,
        }


def test_every_subject_of_thirty_is_asked_from_a_limit_of_thirty_on() -> None:
    subjects = keys(**{f"subject{n}": 30 for n in range(30)})
    assert set(parts_of(sample_ids(subjects, 30)).values()) == {1}
    assert set(parts_of(sample_ids(subjects, 90)).values()) == {3}


def test_a_larger_limit_asks_all_that_a_smaller_one_asks() -> None:
    items = keys(a=50, b=31, c=7)
    for limit in range(1, 88):
        assert sample_ids(items, limit) < sample_ids(items, limit + 1)


def test_a_sample_depends_on_nothing_but_the_items() -> None:
    items = keys(a=50, b=31)
    assert sample_ids(items, 20) == sample_ids(items[::-1], 20)
    first_ones = {f"a-{n}" for n in range(12)}
    assert not first_ones <= sample_ids(items, 20)


def test_clusters_are_taken_whole_where_a_figure_needs_all_of_them() -> None:
    items = [ItemKey(id=f"{n}/{rotation}", part="p", cluster=str(n)) for n in range(20) for rotation in range(4)]
    for limit in (1, 4, 7, 8, 40, 79):
        taken = Counter(id.partition("/")[0] for id in sample_ids(items, limit, keeps_clusters=True))
        assert set(taken.values()) == {4}
        assert sum(taken.values()) <= max(limit, 4)
        assert len(taken) == max(1, limit // 4)


def charts(folder: Path, count: int = 8) -> DataSource:
    """Write ChartQA in the layout of its release: a file of each half."""
    picture_file(folder / "test/png/1.png")
    for part in ("augmented", "human"):
        rows = [{"imgname": "1.png", "query": f"{part} {n}?", "label": "1"} for n in range(count)]
        json_file(folder / f"test/test_{part}.json", rows)
    return DataSource(data=folder)


def test_a_limited_run_of_charts_is_of_both_halves_in_the_order_of_the_data(tmp_path: Path) -> None:
    source, task = charts(tmp_path), find_task("chartqa")
    everything = [item.id for item in task.items(source)]
    found = list(limited(task, source, 6))
    assert Counter(item.part for item in found) == {"augmented": 3, "human": 3}
    assert [item.id for item in found] == sorted((item.id for item in found), key=everything.index)
    chosen = choose(task, source, 6)
    assert (chosen.available, chosen.seed, chosen.is_subset) == (16, 0, True)
    for limit in (None, 16, 99):
        whole = choose(task, source, limit)
        assert (len(list(whole.items())), whole.seed, whole.is_subset) == (16, None, False)


def test_a_limited_run_of_mmmu_is_of_many_subjects(tmp_path: Path) -> None:
    row = {"question": "?", "options": "['a', 'b']", "answer": "A", "image_1": cell(), "image_2": None}
    subjects = ("Art", "Biology", "Music", "Physics")
    for subject in subjects:
        rows = [{"id": f"validation_{subject}_{n}", **row} for n in range(5)]
        parquet(tmp_path / subject / "validation-00000-of-00001.parquet", rows)
    found = limited(find_task("mmmu"), DataSource(data=tmp_path), 4)
    assert sorted(item.part for item in found) == list(subjects)


def test_a_limited_run_of_mmbench_asks_every_rotation_of_a_question(tmp_path: Path) -> None:
    rows = [
        {"index": n + rotation * 1_000_000, "question": "?", "A": "x", "B": "y", "answer": "A", "category": f"c{n % 3}",
         "image": png()}
        for rotation in range(2) for n in range(6)
    ]  # fmt: skip
    tsv(tmp_path / "MMBench_DEV_EN.tsv", rows)
    found = list(limited(find_task("mmbench_en"), DataSource(data=tmp_path), 6))
    assert Counter(Counter(item.cluster for item in found).values()) == {2: 3}
    assert len({item.part for item in found}) == 3


def test_both_questions_of_a_picture_of_mme_are_asked(tmp_path: Path) -> None:
    rows = [
        {"index": 2 * n + k, "category": "existence", "image_path": f"{n}.png", "question": f"{k}?", "answer": "Yes",
         "image": png()}
        for n in range(5) for k in range(2)
    ]  # fmt: skip
    tsv(tmp_path / "MME.tsv", rows)
    found = list(limited(find_task("mme"), DataSource(data=tmp_path), 5))
    assert Counter(Counter(item.cluster for item in found).values()) == {2: 2}


def test_a_limited_run_writes_down_its_sample_and_goes_on_with_it(tmp_path: Path) -> None:
    from vl2.cli.main import run

    charts(tmp_path / "data", 4)
    arguments = ["eval", "run", "chartqa", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    arguments += ["--limit", "3", "--max-new-tokens", "2", "--quiet"]
    assert run(arguments) == 0
    folder = tmp_path / "out/chartqa"
    about, lines = json.loads((folder / "run.json").read_text()), (folder / "results.jsonl").read_bytes()
    assert (about["limit"], about["seed"], about["available"], about["is_subset"]) == (3, 0, 8, True)
    assert {json.loads(line)["part"] for line in lines.splitlines()} == {"human", "augmented"}
    (folder / "results.jsonl").rename(folder / "results.0-of-1.jsonl")
    (folder / "results.0-of-1.jsonl").write_bytes(b"".join(lines.splitlines(keepends=True)[:1]))  # killed after one
    assert run(arguments) == 0
    assert (folder / "results.jsonl").read_bytes() == lines


def test_a_drawn_test_is_drawn_from_its_own_seed() -> None:
    chosen = choose(find_task("presence"), DataSource(), 3)
    assert (chosen.seed, chosen.available, chosen.is_subset) == (990_001, None, False)
    assert [type(item) for item in chosen.items()] == [Item] * 3
