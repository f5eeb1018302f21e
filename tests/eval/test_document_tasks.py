"""The public benchmarks beyond the paper's are read in their public layouts, and asked and scored by their rules."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.eval.fixtures import SIZE, cell, json_file, jsonl, parquet, picture_file, png, tsv
from vl2.errors import UserError
from vl2.eval.choose_items import scan_items
from vl2.eval.run_task import prompt_text
from vl2.eval.task import REFUSED, DataSource, Item, Result
from vl2.eval.task_catalog import find_task
from vl2.process.image import open_image

SCORING = ("bs4", "fuzzysearch", "lxml", "pylatexenc", "rapidfuzz", "scipy")


def items(name: str, data: Path) -> list[Item]:
    return list(find_task(name).items(DataSource(data=data)))


def said(name: str, item: Item, protocol: str) -> str:
    return prompt_text(find_task(name).protocol(protocol)[1].ask(item)).removeprefix("<image>\n")


def score(name: str, item: Item, answer: str, protocol: str | None = None) -> float:
    return find_task(name).protocol(protocol)[1].score(item, answer).value


def result(name: str, item: Item, answer: str, protocol: str | None = None, *, refused: bool = False) -> Result:
    """Return the result of an answer, or of an item that could not be asked."""
    found = find_task(name).protocol(protocol)[1].score(item, answer)
    return Result(
        id=item.id, part=item.part, cluster=item.cluster, prompt="", answer=answer, read=found.read, gold=item.gold,
        score=0.0 if refused else found.value, is_undecided=False, finish_reason=REFUSED if refused else "stop",
        prompt_tokens=1, completion_tokens=1, measures={} if refused else found.measures,
    )  # fmt: skip


# ScreenSpot: the picture is 60 x 40, and the element's box is x 6..18, y 20..30.
CLICK = {"img_filename": "a.png", "instruction": "open the menu", "data_type": "icon", "data_source": "ios"}
PRO_ROW = {
    "id": "excel_1", "img_filename": "office/a.png", "bbox": [6, 20, 18, 30], "img_size": [60, 40], "group": "Office",
    "instruction": "open the menu", "ui_type": "icon", "platform": "windows", "application": "excel",
}  # fmt: skip


def screens(folder: Path, name: str) -> None:
    if name == "screenspot_pro":
        picture_file(folder / "images/office/a.png")
        json_file(folder / "annotations/excel_windows.json", [PRO_ROW])
        return
    end, pictures = ("_v2", "screenspotv2_image") if name == "screenspot_v2" else ("", "screenspot_imgs")
    picture_file(folder / pictures / "a.png")
    json_file(folder / f"screenspot_mobile{end}.json", [{**CLICK, "bbox": [6, 20, 12, 10]}])


@pytest.mark.parametrize(
    ("name", "part"),
    [("screenspot", "mobile icon"), ("screenspot_v2", "mobile icon"), ("screenspot_pro", "Office icon")],
)
def test_screenspot_is_read_in_the_layout_of_its_release(tmp_path: Path, name: str, part: str) -> None:
    screens(tmp_path, name)
    (item,) = items(name, tmp_path)
    assert (item.question, item.gold, item.part) == ("open the menu", [[6.0, 20.0, 18.0, 30.0]], part)
    assert open_image(item.images[0]).size == SIZE
    assert said(name, item, "paper") == "<|ref|>open the menu<|/ref|>."


def test_the_hubs_copy_of_screenspot_has_boxes_as_fractions(tmp_path: Path) -> None:
    row = {"file_name": "a.png", "image": cell(), "instruction": "open", "data_type": "text", "data_source": "ios"}
    parquet(tmp_path / "data/test-00000-of-00001.parquet", [{**row, "bbox": [0.1, 0.5, 0.3, 0.75]}])
    (item,) = items("screenspot", tmp_path)
    assert item.gold[0] == pytest.approx([6, 20, 18, 30])
    parquet(tmp_path / "data/test-00000-of-00001.parquet", [{**row, "bbox": [6.0, 20.0, 18.0, 30.0]}])
    with pytest.raises(UserError, match="row 0: bbox must be four fractions of the sides"):
        items("screenspot", tmp_path)


@pytest.mark.parametrize(
    ("name", "protocol", "answer", "value"),
    [
        ("screenspot", "paper", "<|ref|>menu<|/ref|><|det|>[[100, 500, 300, 749]]<|/det|>", 1.0),
        ("screenspot", "paper", "<|ref|>menu<|/ref|><|det|>[[0, 0, 100, 100]]<|/det|>", 0.0),
        ("screenspot", "paper", "(0.2, 0.6)", 0.0),  # no box in this model's form
        ("screenspot", "official", "(0.2,0.6)", 1.0),
        ("screenspot", "official", "(0.1,0.5,0.3,0.75)", 1.0),
        ("screenspot", "official", "(0.31,0.6)", 0.0),
        ("screenspot", "official", "element 1 at (0.2,0.6)", 0.0),  # three numbers are neither a point nor a box
        ("screenspot", "lmms-eval", "[0.10, 0.50, 0.30, 0.74]", 1.0),
        ("screenspot", "lmms-eval", "(100, 500, 300, 740)", 1.0),  # thousandths
        ("screenspot", "lmms-eval", "the box 0.1 0.5", 0.0),
        ("screenspot_v2", "lmms-eval", "[0.2, 0.6]", 1.0),
        ("screenspot_v2", "lmms-eval", "[12, 24]", 1.0),  # pixels
        ("screenspot_v2", "lmms-eval", "x=20%, y=60%", 1.0),
        ("screenspot_v2", "lmms-eval", "<bbox>0.1 0.5 0.3 0.74</bbox>", 1.0),
        ("screenspot_pro", "lmms-eval", "[0.1, 0.5]", 1.0),  # the edge belongs to the box
        ("screenspot_pro", "lmms-eval", "[0.09, 0.5]", 0.0),
        ("screenspot_pro", "lmms-eval", "nothing", 0.0),
    ],
)
def test_a_click_must_be_in_the_elements_box(
    tmp_path: Path, name: str, protocol: str, answer: str, value: float
) -> None:
    screens(tmp_path, name)
    assert score(name, items(name, tmp_path)[0], answer, protocol) == value


def test_screenspot_gives_the_accuracy_of_texts_and_icons() -> None:
    task = find_task("screenspot")
    parts = ("mobile text", "mobile icon", "web icon")
    results = [
        Result(id=str(n), part=part, cluster="", prompt="", answer="", read="", gold=[[0, 0, 1, 1]],
               score=float(n == 0), is_undecided=False, finish_reason="stop", prompt_tokens=1, completion_tokens=1)
        for n, part in enumerate(parts)
    ]  # fmt: skip
    figures = task.metric(results)
    assert next(iter(figures)) == "score"
    assert (figures["text"], figures["icon"], figures["web icon"]) == (100.0, 0.0, 0.0)


def test_countbenchqa_is_read_and_scored_by_each_protocol(tmp_path: Path) -> None:
    rows = [{"image": cell(), "text": "Four cats.", "question": "How many cats are there?", "number": 4}]
    parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", rows)
    tsv(tmp_path / "tsv/CountBenchQA.tsv", [{"index": 1, "image": png(), "question": "How many?", "answer": 4}])
    (item,), (other,) = items("countbenchqa", tmp_path / "hub"), items("countbenchqa", tmp_path / "tsv")
    assert (item.gold, other.gold, other.question) == ("4", "4", "How many?")
    assert said("countbenchqa", item, "lmms-eval").startswith("Four cats.\n\nHow many cats are there?\nAnswer")
    answers = ("4", "There are 4.", "14", "four")
    assert [score("countbenchqa", item, a, "paper") for a in answers] == [1.0, 1.0, 0.0, 0.0]
    assert [score("countbenchqa", item, a, "vlmevalkit") for a in answers] == [1.0, 1.0, 1.0, 0.0]
    assert [score("countbenchqa", item, a, "lmms-eval") for a in answers] == [1.0, 0.0, 0.0, 0.0]


CHART: dict[str, Any] = {
    "Question": ["When did it rise?", "And fall?"], "Answer": ["2010", "2012"], "Question Type": "Conversational",
    "Year": ["YES", "YES"], "Paragraph": "",
}  # fmt: skip


def test_chartqapro_asks_the_last_question_of_a_conversation(tmp_path: Path) -> None:
    parquet(tmp_path / "a/data/test-00000-of-00001.parquet", [{**CHART, "image": png()}])
    named = {name.lower().replace(" ", "_"): value for name, value in CHART.items()}
    tsv(tmp_path / "b/chartqapro.tsv", [{"index": 0, "image": png(), **named}])
    for folder in ("a", "b"):
        (item,) = items("chartqapro", tmp_path / folder)
        assert (item.question, item.gold, item.part) == ("And fall?", "2012", "Conversational")
        prompt = said("chartqapro", item, "vlmevalkit")
        assert "Conversation: ['When did it rise?', '2010'] Question: And fall?" in prompt
        assert "the information in the provided image, your answer should be unanswerable." in prompt
        assert "Q1: When did it rise?\nA1: 2010\nQ2: And fall?" in said("chartqapro", item, "lmms-eval")
        assert [score("chartqapro", item, a, "vlmevalkit") for a in ("2012", "2012.", "2011")] == [1.0, 1.0, 0.0]


def test_chartqapro_names_an_unknown_type(tmp_path: Path) -> None:
    parquet(tmp_path / "test.parquet", [{**CHART, "Question Type": "Riddle", "image": png()}])
    with pytest.raises(UserError, match=r"question type must be one of Factoid.*got 'Riddle'"):
        items("chartqapro", tmp_path)


def pdf_file(path: Path) -> None:
    """Write a PDF file of one blank page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.new("RGB", (60, 80), "white").save(buffer, "PDF")
    path.write_bytes(buffer.getvalue())


def facts(folder: Path, *more: Mapping[str, Any]) -> None:
    pdf_file(folder / "pdfs/tables/a.pdf")
    test = {"pdf": "tables/a.pdf", "page": 1, "checked": "verified"}
    jsonl(folder / "old_scans.jsonl", [{**test, "id": "1", "type": "present", "text": "a boat", "max_diffs": 0}])
    cells = {"type": "table", "cell": "12", "left": "Oslo", "top_heading": "Visitors"}
    jsonl(folder / "table_tests.jsonl", [{**test, "id": "2", **cells}, *({**test, **row} for row in more)])


def test_olmocr_bench_asks_each_page_once_and_averages_its_categories(tmp_path: Path) -> None:
    for library in (*SCORING, "pypdfium2"):
        pytest.importorskip(library)
    facts(tmp_path / "bench_data")
    (item,) = items("olmocr_bench", tmp_path)
    assert [(test["category"], test["type"]) for test in item.gold] == [
        ("old_scans", "present"), ("table_tests", "table"), ("baseline", "baseline")
    ]  # fmt: skip
    assert open_image(item.images[0]).size == (1536, 2048)  # the page is 60 x 80
    assert scan_items([item])[0] == ["tables/a.pdf-1"]
    table = "| City | Visitors |\n|---|---|\n| Oslo | 12 |"
    right, wrong = result("olmocr_bench", item, f"It is a boat.\n\n{table}"), result("olmocr_bench", item, table)
    metric = find_task("olmocr_bench").metric
    assert metric([right]) == {"score": 100.0, "baseline": 100.0, "old_scans": 100.0, "table_tests": 100.0}
    assert metric([wrong])["score"] == pytest.approx(200 / 3)
    assert metric([result("olmocr_bench", item, "", refused=True)])["score"] == 0.0
    assert "failed: 1" in wrong.read


def test_olmocr_bench_gives_no_official_figure_without_a_browser(tmp_path: Path) -> None:
    for library in (*SCORING, "pypdfium2"):
        pytest.importorskip(library)
    facts(tmp_path, {"id": "3", "type": "math", "math": "x^2"})
    (item,) = items("olmocr_bench", tmp_path)
    figures = find_task("olmocr_bench").metric([result("olmocr_bench", item, r"a boat \(x^{2}\)")])
    assert next(iter(figures)) == "categories without formulas"
    assert figures["categories without formulas"] == 100.0  # old_scans and baseline
    assert "score" not in figures
    assert any(name.startswith("table_tests (lower bound") for name in figures)


def test_olmocr_bench_names_a_page_that_is_not_there(tmp_path: Path) -> None:
    for library in (*SCORING, "pypdfium2"):
        pytest.importorskip(library)
    facts(tmp_path, {"id": "3", "type": "present", "text": "x", "page": 2})
    with pytest.raises(UserError, match=r"a.pdf has 1 pages, and page 2 is asked for"):
        items("olmocr_bench", tmp_path)


def annotated(folder: Path) -> Mapping[str, Any]:
    blocks = [
        {"anno_id": 1, "category_type": "title", "order": 1, "text": "On boats", "poly": [0] * 8},
        {"anno_id": 2, "category_type": "text_block", "order": 2, "text": "A boat crossed ", "poly": [0] * 8},
        {"anno_id": 3, "category_type": "text_block", "order": 3, "text": "the bay.", "poly": [0] * 8},
        {"anno_id": 4, "category_type": "equation_isolated", "order": 4, "latex": "\\[x = 1\\]", "poly": [0] * 8},
        {
            "anno_id": 5,
            "category_type": "table",
            "order": 5,
            "html": "<table><tr><td>12</td></tr></table>",
            "latex": "",
        },
        {"anno_id": 6, "category_type": "page_number", "order": 6, "text": "7", "poly": [0] * 8},
    ]
    relation = {"relation_type": "truncated", "source_anno_id": 2, "target_anno_id": 3}
    info = {"image_path": "a.png", "width": 60, "height": 40, "page_attribute": {"language": "english"}}
    page = {"layout_dets": blocks, "extra": {"relation": [relation]}, "page_info": info}
    picture_file(folder / "images/a.png")
    json_file(folder / "OmniDocBench.json", [page])
    return page


def test_omnidocbench_is_read_from_its_annotations_and_from_a_tsv(tmp_path: Path) -> None:
    for library in SCORING:
        pytest.importorskip(library)
    page = annotated(tmp_path / "a")
    tsv(tmp_path / "b/OmniDocBench.tsv", [{"index": 0, "image": png(), "answer": json.dumps(page)}])
    (first,), (second,) = items("omnidocbench", tmp_path / "a"), items("omnidocbench", tmp_path / "b")
    assert (first.id, first.part, first.gold) == ("a.png", "english", second.gold)
    right = "# On boats\n\nA boat crossed the bay.\n\n\\[x = 1\\]\n\n<table><tr><td>12</td></tr></table>"
    figures = find_task("omnidocbench").metric([result("omnidocbench", first, right)])
    assert next(iter(figures)) == "text"
    assert {name: figures[name] for name in ("text", "formulas", "tables TEDS", "order")} == {
        "text": 100.0, "formulas": 100.0, "tables TEDS": 100.0, "order": 100.0
    }  # fmt: skip
    assert "overall" not in figures
    refused = result("omnidocbench", first, "", refused=True)
    assert find_task("omnidocbench").metric([result("omnidocbench", first, right), refused])["text"] == 50.0


def test_the_tags_of_deepseek_ocr_are_not_part_of_the_markdown(tmp_path: Path) -> None:
    for library in SCORING:
        pytest.importorskip(library)
    annotated(tmp_path)
    (item,) = items("omnidocbench", tmp_path)
    tag = "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n"
    tagged = f"{tag}# On boats\n{tag}A boat crossed the bay.\n"
    found = find_task("omnidocbench").protocol("deepseek-ocr")[1].score(item, tagged)
    assert found.measures["text"] == 1.0


def test_ocrbench_v2_is_read_from_its_release_and_averages_abilities(tmp_path: Path) -> None:
    from tests.eval.score.test_document_scores import has_wordnet

    for library in (*SCORING, "jieba", "nltk"):
        pytest.importorskip(library)
    if not has_wordnet():
        pytest.skip("NLTK's WordNet is not installed")
    picture_file(tmp_path / "EN_part/a.png")
    row = {"dataset_name": "x", "image_path": "EN_part/a.png", "question": "What?", "answers": ["boat"]}
    spotted = {"bbox": [[0, 0, 10, 0, 10, 10, 0, 10]], "content": ["Bay"], "answers": []}
    rows = [
        {**row, "id": 0, "type": "text recognition en"}, {**row, "id": 1, "type": "science QA en"},
        {**row, "id": 2, "type": "text spotting en", **spotted}, {**row, "id": 3, "type": "cognition VQA cn"},
        {**row, "id": 4, "type": "text counting en", "answers": [4], "eval": "regression"},
    ]  # fmt: skip
    json_file(tmp_path / "OCRBench_v2.json", rows)
    found = items("ocrbench_v2", tmp_path)
    answers = ["A boat.", "car", "[(0, 0, 10, 10, 'bay')]", "boat", "There are 3"]
    assert [score("ocrbench_v2", i, a) for i, a in zip(found, answers, strict=True)] == [1.0, 0.0, 1.0, 1.0, 0.75]
    results = [result("ocrbench_v2", i, a) for i, a in zip(found, answers, strict=True)]
    figures = find_task("ocrbench_v2").metric(results)
    assert list(figures)[:2] == ["English", "Chinese"]
    assert figures["English"] == pytest.approx((100 + 0 + 100 + 75) / 4)
    json_file(tmp_path / "OCRBench_v2.json", [{**row, "id": 0, "type": "riddle"}])
    with pytest.raises(UserError, match="question 0: the type must be one of"):
        items("ocrbench_v2", tmp_path)
