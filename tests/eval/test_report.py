"""A report says what was measured, how sure it is, what it may be compared with, and shows the samples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.eval.fixtures import cell, parquet
from vl2.config import ModelConfig, preset
from vl2.errors import UserError
from vl2.eval.choose_items import limited, scan_items
from vl2.eval.published import published, released_size, rows, size_of_count
from vl2.eval.report import WORST, choose_samples, facts, make_report, write_reports
from vl2.eval.results import RunId, open_run, write_results
from vl2.eval.run_task import tiling_text
from vl2.eval.score import SCORER_VERSION
from vl2.eval.task import DataSource, Item, Result
from vl2.eval.task_catalog import TASKS, find_task
from vl2.process.tiling import Tiling


def result(item: Item, answer: str, score: float, **changes: object) -> Result:
    fields = {"read": answer, "is_undecided": False, "finish_reason": "stop", "prompt": item.question} | changes
    return Result(
        id=item.id, part=item.part, cluster=item.cluster, answer=answer, gold=item.gold, score=score,
        prompt_tokens=1, completion_tokens=1, **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def run_id(task: str, **changes: object) -> RunId:
    name = str(changes.get("protocol", find_task(task).protocol()[0]))
    protocol = find_task(task).protocol(name)[1]
    fields = {
        "protocol": name, "limit": None, "split": None, "parameters": 3_370_501_440, "judge": None, "data": "d",
        "size": "tiny", "scorer": SCORER_VERSION,
        "max_new_tokens": protocol.max_new_tokens, "tiling": tiling_text(Tiling(), protocol.max_tiles),
    } | changes  # fmt: skip
    return RunId(
        task=task, model="m", weights="w", arithmetic="float32 on cpu", version="0",
        **fields,  # type: ignore[arg-type]
    )  # fmt: skip


def written(folder: Path, task: str, results: list[Result], source: DataSource, **changes: object) -> Path:
    _, digest = scan_items(limited(find_task(task), source, len(results)))
    open_run(folder / task, run_id(task, **{"data": digest} | changes))
    write_results(folder / task, results)
    write_reports(folder, {task: find_task(task)}, source)
    return folder / task


def charts(folder: Path, count: int = 3) -> DataSource:
    row = {"type": "human_test", "question": "How <b>high</b>?", "answer": "14", "image": cell()}
    parquet(folder / "test-00000-of-00001.parquet", [row] * count)
    return DataSource(data=folder)


@pytest.fixture
def chart_run(tmp_path: Path) -> Path:
    source = charts(tmp_path / "data")
    items = list(limited(find_task("chartqa"), source, None))
    results = [result(items[0], "14", 1.0), result(items[1], "<script>", 0.0), result(items[2], "14.1", 1.0)]
    return written(tmp_path / "out", "chartqa", results, source)


def test_the_paper_stands_beside_the_figure_of_a_released_size_its_own_first(chart_run: Path) -> None:
    text = (chart_run / "report.md").read_text(encoding="utf-8")
    assert "score: 66.7 %, 95 % interval" in text
    assert "paper: 81 for tiny, the size of this model by its config.json; small 84.5, base 86\n" in text
    assert "protocol: paper (the published figure's)\n" in text
    assert "Not the same test" not in text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"size": None, "parameters": 17_000_000},
            "the model has 17.0 million parameters, which is none of the published sizes",
        ),
        ({"limit": 3, "available": 2500, "seed": 0, "is_subset": True}, "the published ones are of all items"),
        ({"is_subset": True, "left_out": {"too large": 7}}, "the published ones are of all items"),
        ({"protocol": "lmms-eval"}, "the published ones are by protocol paper"),
        ({"tiling": "per-image"}, "the published ones are with tiling paper"),
        ({"max_new_tokens": 3}, "the published ones are of answers of up to 128 tokens"),
    ],
    ids=["another size", "a limit", "something left out", "protocol", "tiling", "length"],
)
def test_no_figure_of_the_paper_stands_beside_a_run_of_another_test_or_size(
    changes: dict[str, object], why: str, tmp_path: Path
) -> None:
    source = charts(tmp_path / "data")
    results = [result(item, "14", 1.0) for item in limited(find_task("chartqa"), source, None)]
    run = written(tmp_path / "out", "chartqa", results, source, **changes)
    for file in (run / "report.md", run / "report.html", run.parent / "report.md", run.parent / "report.html"):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"\b(81|84\.5|86)(\.0)?\b", text.partition("<main>")[0].replace(":86", "")), file
        assert "published figure's" not in text
    assert f"paper: no figure to compare with: {why}" in (run / "report.md").read_text(encoding="utf-8")
    report = make_report(find_task("chartqa"), run_id("chartqa", **changes), results)
    assert (report.paper(), report.comparable, "paper tiny" in report.line()) == ({}, False, False)
    assert report.to_dict()["paper"] == {}


def test_the_published_split_alone_may_differ_and_is_told() -> None:
    item = Item(id="1", question="?", gold=["x"])
    report = make_report(find_task("docvqa"), run_id("docvqa"), [result(item, "x", 1.0)])
    assert (report.paper()["tiny"], report.comparable) == (88.9, False)
    assert facts(report)["paper"].endswith("Not the same test: the published figures are of split test")
    assert "published figure's" not in facts(report)["protocol"]


def test_a_report_says_how_many_items_of_how_many_and_what_was_left_out() -> None:
    item = Item(id="1", question="?", gold="yes")
    left_out = {"of groups that are kept for training": 4}
    run = run_id("nlvr", size=None, left_out=left_out, is_subset=True, available=9, limit=1, seed=0)
    report = make_report(find_task("nlvr"), run, [result(item, "yes", 1.0)])
    assert facts(report)["items"] == "1 of 9, a sample spread over all parts (seed 0)"
    said = "4 items of groups that are kept for training (--whole asks all that can be asked)"
    assert facts(report)["left out"] == said
    assert f"1 of 9 items; left out: {said}" in report.line()
    assert (report.to_dict()["left_out"], report.to_dict()["available"]) == (left_out, 9)


def test_a_report_of_a_run_that_took_the_first_items_says_so() -> None:
    item = Item(id="1", question="?", gold="14")
    before = run_id("chartqa", limit=1, scorer=1, size=None)  # as runs of before were written down
    report = make_report(find_task("chartqa"), before, [result(item, "14", 1.0)])
    assert (facts(report)["items"], report.size, report.paper()) == ("1, the first ones", "tiny", {})


def test_samples_are_shown_with_their_pictures_failures_first_and_every_text_escaped(chart_run: Path) -> None:
    page = (chart_run / "report.html").read_text(encoding="utf-8")
    assert re.findall(r'<article data-kind="(\w+)">', page) == ["wrong", "right", "right"]
    assert page.count("data:image/jpeg;base64,") == 3
    assert "&lt;script&gt;" in page
    assert "<script>" not in page.partition("<main>")[2].partition("</main>")[0]
    assert "default-src 'none'" in page
    assert "<td>DeepSeek-VL2 base (4.5B)</td><td>86.0</td>" in page
    assert "<td>this run: m</td><td>66.7</td>" in page
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_the_page_of_the_folder_keeps_the_runs_of_earlier_calls(tmp_path: Path) -> None:
    task = find_task("count_objects")
    items = list(limited(task, DataSource(), 2))
    written(tmp_path, "count_objects", [result(item, "3", 0.0) for item in items], DataSource(), limit=2)
    pictures = charts(tmp_path / "data", 1)
    (item,) = limited(find_task("chartqa"), pictures, None)
    written(tmp_path, "chartqa", [result(item, "14", 1.0)], pictures)
    (tmp_path / "presence").mkdir()
    open_run(tmp_path / "presence", run_id("presence"))  # begun, not finished
    reports = write_reports(tmp_path, TASKS, DataSource())
    assert [report.task.name for report in reports] == ["chartqa", "count_objects"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index('href="chartqa/report.html"') < page.index('href="count_objects/report.html"')


def test_a_folder_without_a_finished_run_says_so(tmp_path: Path) -> None:
    open_run(tmp_path / "presence", run_id("presence"))
    with pytest.raises(UserError, match=r"no run in .* is finished"):
        write_reports(tmp_path, TASKS, DataSource())


@pytest.mark.parametrize(
    ("task", "changes", "why"),
    [
        ("chartqa", {}, ""),
        ("chartqa", {"limit": 5}, "of all items"),
        ("chartqa", {"protocol": "lmms-eval"}, "by protocol paper"),
        ("docvqa", {}, "of split test"),
        ("docvqa", {"split": "test"}, ""),
        ("textvqa", {"split": "train"}, "of split validation"),
        ("chartqa", {"split": "test"}, ""),
        ("mathvista", {"max_new_tokens": 4}, "of answers of up to 512 tokens"),
        ("chartqa", {"tiling": "budget:500"}, "with tiling paper"),
        ("docvqa", {"split": "test", "tiling": "paper, up to 1 tiles"}, "with tiling paper"),
        ("infovqa", {"split": "test"}, ""),
        ("infovqa", {"split": "test", "tiling": "paper"}, "with tiling paper, up to 18 tiles"),
    ],
)
def test_a_figure_of_another_test_is_not_put_beside_the_papers_as_if_it_were_the_same(
    task: str, changes: dict[str, object], why: str
) -> None:
    item = Item(id="1", question="?", gold=["x"])
    report = make_report(find_task(task), run_id(task, **changes), [result(item, "x", 1.0)])
    assert " and ".join(report.differences()) == why
    assert report.comparable == (not why)


def test_a_figure_with_unread_refused_or_unanswered_items_is_not_comparable() -> None:
    item = Item(id="1", question="?", gold="x")
    for changes, why in (
        ({"is_undecided": True}, ["with a judge for all that rules cannot read"]),
        ({"finish_reason": "refused"}, ["with no item left out"]),
    ):
        report = make_report(find_task("mathvista"), run_id("mathvista"), [result(item, "x", 0.0, **changes)])
        assert (report.differences(), report.comparable) == (why, False)
    hidden = Item(id="1", question="?", gold=[""] * 10)
    report = make_report(find_task("textvqa"), run_id("textvqa"), [result(hidden, "x", 0.0)])
    assert (report.unanswered, report.comparable) == (1, False)


def test_answers_that_the_judge_did_not_read_are_told_with_its_name(tmp_path: Path) -> None:
    item = Item(id="1", question="?", gold="x")
    run = run_id("mathvista", judge="a model")
    report = make_report(find_task("mathvista"), run, [result(item, "x", 0.0, is_undecided=True)])
    assert facts(report)["judge"] == "a model; 1 answers that it did not read count as wrong"


def test_data_that_are_not_here_leave_a_report_without_pictures_and_the_others_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    row = {"question_id": 1, "question": "What is it?", "answers": ["x"] * 10, "image": cell()}
    parquet(photos / "validation-00000-of-00001.parquet", [row])
    (item,) = limited(find_task("textvqa"), DataSource(data=photos), None)
    out = tmp_path / "out"
    written(out, "textvqa", [result(item, "x", 1.0)], DataSource(data=photos))
    pictures = charts(tmp_path / "charts", 1)
    (item,) = limited(find_task("chartqa"), pictures, None)
    written(out, "chartqa", [result(item, "14", 1.0)], pictures)
    capsys.readouterr()
    assert [report.task.name for report in write_reports(out, TASKS, pictures)] == ["chartqa", "textvqa"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("textvqa: the report has no pictures: ")
    assert "has no validation-*" in line
    assert (out / "chartqa/report.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 1
    assert "data:image/jpeg;base64," not in (out / "textvqa/report.html").read_text(encoding="utf-8")


def test_pictures_of_other_data_with_the_same_ids_are_not_shown(
    chart_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"type": "human_test", "question": "How low?", "answer": "14", "image": cell(50)}
    parquet(tmp_path / "others/test-00000-of-00001.parquet", [row] * 3)
    write_reports(chart_run, TASKS, DataSource(data=tmp_path / "others"))
    assert capsys.readouterr().err == "chartqa: the report has no pictures: the data are not those of the run\n"
    assert "data:image/jpeg;base64," not in (chart_run / "report.html").read_text(encoding="utf-8")


def test_missing_judges_gold_answers_and_refused_items_are_told() -> None:
    items = [Item(id=str(n), question="?", gold=["x"]) for n in range(3)]
    undecided = result(items[0], "x", 0.0, is_undecided=True)
    refused = result(items[1], "", 0.0, finish_reason="refused")
    line = make_report(find_task("mathvista"), run_id("mathvista"), [undecided, refused]).line()
    assert "1 answers need a judge and count as wrong" in line
    assert "1 could not be asked and count as wrong" in line
    nothing = result(Item(id="4", question="?", gold=[]), "x", 0.0)
    assert "no gold answers" in make_report(find_task("docvqa"), run_id("docvqa"), [nothing]).line()


def test_the_worst_are_shown_first_and_some_of_the_best_after_them() -> None:
    item = Item(id="1", question="?", gold=["x"])
    shown = choose_samples([result(item, "x", float(n % 2)) for n in range(1000)])
    assert len(shown) == 200
    assert [r.score for r in shown[:WORST]] == [0.0] * WORST
    assert {r.score for r in shown[WORST:]} == {1.0}


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_size_is_that_of_the_config_whatever_a_fine_tuning_or_a_larger_context_changed(size: str) -> None:
    values = preset(size).to_dict()
    assert released_size(preset(size)) == size
    values["language_config"] |= {"max_position_embeddings": 32768, "aux_loss_alpha": 0.0, "n_group": None}
    assert released_size(ModelConfig.from_dict({**values, "_name_or_path": "mine", "torch_dtype": "float32"})) == size
    for key in ("num_hidden_layers", "moe_intermediate_size", "vocab_size"):
        now = getattr(preset(size).language_config, key)
        other = {**values["language_config"], key: now + 2}
        assert released_size(ModelConfig.from_dict({**values, "language_config": other})) is None


def test_the_built_in_model_has_no_released_size() -> None:
    assert released_size(preset("nano")) is None


def test_a_run_without_a_size_has_the_one_of_its_number_of_parameters_to_a_hundredth() -> None:
    numbers = (0.017, 3.37, 3.5, 9, 16.1, 27.5)
    assert [size_of_count(int(n * 1e9)) for n in numbers] == [None, "tiny", None, None, "small", "base"]


def test_every_column_of_the_paper_has_a_task_and_all_three_sizes() -> None:
    columns = {task.published for task in TASKS.values() if task.published}
    assert columns == {column for row in rows()[:3] for column in row.figures}
    assert [row.model for row in rows()[:3]] == ["tiny", "small", "base"]
    assert all(published(column, size) is not None for column in columns for size in ("tiny", "small", "base"))


def test_the_guide_lists_every_task_with_the_papers_figures() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for name, task in TASKS.items():
        (line,) = (line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        if task.published:
            figures = ", ".join(f"{published(task.published, size):g}" for size in ("tiny", "small", "base"))
            assert f"| {task.published_by} | {figures} | {task.published_split or 'the same'} |" in line


def test_a_run_is_described_in_json_for_programs(chart_run: Path) -> None:
    (report,) = write_reports(chart_run, TASKS, DataSource())
    found = json.loads(json.dumps(report.to_dict()))
    assert (found["task"], found["items"], found["comparable"]) == ("chartqa", 3, True)
    assert found["paper"] == {"tiny": 81.0, "small": 84.5, "base": 86.0}
