"""Every benchmark of the paper is read from every layout in which it is public, and asked and scored by its rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.eval.fixtures import SIZE, cell, json_file, jsonl, parquet, picture_file, png, tsv
from vl2.errors import UserError
from vl2.eval.interval import bootstrap
from vl2.eval.public_data import has_text
from vl2.eval.run_task import prompt_text
from vl2.eval.task import DataSource, Item
from vl2.eval.task_catalog import PAPERS, find_task
from vl2.process.image import open_image

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
SELECT = "Please select the correct answer from the options above."
OPTIONS = {"A": "left", "B": "right"}
PHRASES = {"answer": ["the dog", "a black dog"], "bbox": [10.0, 5.0, 20.0, 30.0]}
BOX = [10.0, 5.0, 30.0, 35.0]

Make = Callable[[Path], object]


def items(name: str, data: Path, split: str | None = None) -> list[Item]:
    task = find_task(name)
    return list(task.items(DataSource(data=data, split=split)))


def said(name: str, item: Item, protocol: str) -> str:
    return prompt_text(find_task(name).protocol(protocol)[1].ask(item)).removeprefix("<image>\n")


def score(name: str, item: Item, answer: str, protocol: str) -> float:
    return find_task(name).protocol(protocol)[1].score(item, answer).value


def charts(folder: Path) -> None:
    picture_file(folder / "test/png/1.png")
    for part, label in (("human", "14"), ("augmented", "yes")):
        json_file(folder / f"test/test_{part}.json", [{"imgname": "1.png", "query": "How high?", "label": label}])


def pages(folder: Path) -> None:
    picture_file(folder / "documents/a_1.png")
    row = {
        "questionId": 49153,
        "question": "What is it?",
        "image": "documents/a_1.png",
        "docId": 14,
        "answers": ["12 pt"],
    }
    json_file(folder / "val_v1.0_withQT.json", {"dataset_name": "SP-DocVQA", "data": [row]})


def infographics(folder: Path) -> None:
    picture_file(folder / "infographicsvqa_images/1.jpeg")
    row = {"questionId": 1, "question": "What is it?", "image_local_name": "1.jpeg", "answers": ["12 pt"]}
    json_file(folder / "infographicsVQA_val_v1.0_withQT.json", {"data": [row]})


def photos_with_text(folder: Path) -> None:
    picture_file(folder / "train_images/0054.jpg")
    row = {"question_id": 3, "image_id": "0054", "question": "What is it?", "answers": ["12 pt"] * 10}
    json_file(folder / "TextVQA_0.5.1_val.json", {"data": [row]})


def ocr(folder: Path) -> None:
    picture_file(folder / "OCRBench_Images/IIIT5K/1.png")
    row = {"dataset_name": "HME100k", "type": "Handwritten Mathematical Expression Recognition", "id": 0}
    json_file(
        folder / "OCRBench.json",
        [{**row, "image_path": "IIIT5K/1.png", "question": "What is it?", "answers": ["x + y"]}],
    )


def faces(folder: Path) -> None:
    picture_file(folder / "existence/1.jpg")
    picture_file(folder / "posters/images/2.jpg")
    text = "Is it there? Please answer yes or no.\tYes\nIs it not? Please answer yes or no.\tNo\n"
    (folder / "existence/1.txt").write_text(text, encoding="utf-8")
    (folder / "posters/questions_answers_YN").mkdir()
    (folder / "posters/questions_answers_YN/2.txt").write_text(text, encoding="utf-8")


def expressions(folder: Path) -> None:
    picture_file(folder / "train2014/COCO_train2014_1.jpg")
    row = {"image": "data/coco/train2014/COCO_train2014_1.jpg", "sent": "the dog", "bbox": BOX}
    jsonl(folder / "refcoco+_testA.jsonl", [{**row, "width": SIZE[0], "height": SIZE[1]}])


MMBENCH = {"index": 3, "question": "Where?", "hint": "Look.", **OPTIONS, "answer": "B", "category": "place"}
ROTATED = {"index": 1_000_003, "question": "Where?", "hint": "Look.", "A": "right", "B": "left", "answer": "A"}
VISTA = {"question": "How many?", "answer": "3", "question_type": "free_form", "answer_type": "integer"}
VISTA |= {"choices": None, "precision": None, "query": "Hint: ...\nQuestion: How many?"}
MMMU = {"question": "Which is <image 1>?", "options": "['left', 'right']", "question_type": "multiple-choice"}
TEN = {"question": "What is it?", "answers": ["12 pt"] * 10, "image": cell()}
POPE = {"question": "Is there a dog?", "answer": "yes", "image": cell(), "category": "adversarial", "image_source": "x"}
MME = {"question_id": "code/1.png", "image": cell(), "answer": "Yes", "category": "code_reasoning"}
MME |= {"question": "Is it? Please answer yes or no."}

# task, what makes its data, how many items, and of the first one: question, gold, options
LAYOUTS: list[tuple[str, Make, int, str, object, tuple[str, ...]]] = [
    ("docvqa", lambda f: parquet(f / "DocVQA/validation-00000-of-00001.parquet", [
        {"questionId": "1", "question": "What is it?", "docId": 2, "answers": ["12 pt", "12"], "image": cell()}]),
     1, "What is it?", ["12 pt", "12"], ()),
    ("docvqa", lambda f: tsv(f / "DocVQA_VAL.tsv", [
        {"index": 1, "question": "What is it?", "answer": "['12 pt', '12']", "image": png()}]),
     1, "What is it?", ["12 pt", "12"], ()),
    ("docvqa", pages, 1, "What is it?", ["12 pt"], ()),
    ("infovqa", lambda f: parquet(f / "InfographicVQA/validation-00000-of-00001.parquet", [
        {"questionId": "1", "question": "What is it?", "answers": ["12 pt"], "image": cell()}]),
     1, "What is it?", ["12 pt"], ()),
    ("infovqa", infographics, 1, "What is it?", ["12 pt"], ()),
    ("chartqa", lambda f: parquet(f / "data/test-00000-of-00001.parquet", [
        {"type": "human_test", "question": "How high?", "answer": ["14"], "image": cell()}]), 1, "How high?", "14", ()),
    ("chartqa", lambda f: tsv(f / "ChartQA_TEST.tsv", [
        {"index": 1, "image": png(), "question": "How high?", "answer": "14", "split": "test_human"}]),
     1, "How high?", "14", ()),
    ("chartqa", lambda f: charts(f / "ChartQA Dataset"), 2, "How high?", "yes", ()),
    ("textvqa", lambda f: parquet(f / "data/validation-00000-of-00003.parquet", [{"question_id": 3, **TEN}]),
     1, "What is it?", ["12 pt"] * 10, ()),
    ("textvqa", photos_with_text, 1, "What is it?", ["12 pt"] * 10, ()),
    ("ocrbench", lambda f: parquet(f / "data/test-00000-of-00001.parquet", [
        {"dataset": "IIIT5K", "question": "What is it?", "question_type": "Regular Text Recognition",
         "answer": ["CENTRE"], "image": cell()}]), 1, "What is it?", ["CENTRE"], ()),
    ("ocrbench", ocr, 1, "What is it?", ["x + y"], ()),
    ("mmstar", lambda f: parquet(f / "mmstar.parquet", [
        {"index": 0, "question": "Where?\nOptions: A: left, B: right", "image": png(), "answer": "B",
         "category": "place"}]), 1, "Where?\nOptions: A: left, B: right", "B", ()),
    ("mmstar", lambda f: tsv(f / "MMStar.tsv", [
        {"index": 0, "image": png(), "question": "Where?", **OPTIONS, "answer": "B", "category": "place"}]),
     1, "Where?", "B", ("left", "right")),
    ("ai2d", lambda f: parquet(f / "data/test-00000-of-00002.parquet", [
        {"question": "Where?", "options": ["left", "right"], "answer": "1", "image": cell()}]),
     1, "Where?", "B", ("left", "right")),
    ("ai2d", lambda f: tsv(f / "AI2D_TEST.tsv", [
        {"index": 5, "image": png(), "question": "Where?", **OPTIONS, "answer": "B"}]),
     1, "Where?", "B", ("left", "right")),
    ("mmmu", lambda f: parquet(f / "Art/validation-00000-of-00001.parquet", [
        {"id": "validation_Art_1", **MMMU, "answer": "B", "image_1": cell(), "image_2": None}]),
     1, "Which is <image 1>?", ["B"], ("left", "right")),
    ("mmmu", lambda f: tsv(f / "MMMU_DEV_VAL.tsv", [
        {"index": 1, "image": [png(), png()], "question": "Which is <image 1>?", **OPTIONS, "answer": "B",
         "split": split} for split in ("dev", "validation")]), 1, "Which is <image 1>?", ["B"], ("left", "right")),
    ("mme", lambda f: parquet(f / "data/test-00000-of-00004.parquet", [MME, {**MME, "answer": "No"}]),
     2, "Is it? Please answer yes or no.", "yes", ()),
    ("mme", faces, 4, "Is it there? Please answer yes or no.", "yes", ()),
    ("mmbench_en", lambda f: tsv(f / "MMBench_DEV_EN.tsv", [
        {**MMBENCH, "image": png()}, {**ROTATED, "category": "place", "image": "3"}]),
     2, "Where?", "B", ("left", "right")),
    ("mmbench_cn", lambda f: parquet(f / "cn/dev-00000-of-00001.parquet", [
        {**MMBENCH, "C": "nan", "image": cell()}]), 1, "Where?", "B", ("left", "right")),
    ("mmbench_v11", lambda f: tsv(f / "MMBench_DEV_EN_V11.tsv", [{**MMBENCH, "image": png()}]),
     1, "Where?", "B", ("left", "right")),
    ("mmt_bench", lambda f: tsv(f / "MMT-Bench_VAL.tsv", [
        {"index": 7, "image": png(), "question": "Where?", **OPTIONS, "C": "", "answer": "B", "category": "place"}]),
     1, "Where?", "B", ("left", "right")),
    ("realworldqa", lambda f: parquet(f / "data/test-00000-of-00002.parquet", [
        {"image": cell(), "question": "Where?\nA. left\nB. right", "answer": "B"}]),
     1, "Where?\nA. left\nB. right", "B", ()),
    ("realworldqa", lambda f: tsv(f / "RealWorldQA.tsv", [
        {"index": 0, "image": png(), "question": "Where?", **OPTIONS, "answer": "B"}]),
     1, "Where?", "B", ("left", "right")),
    ("mathvista", lambda f: parquet(f / "data/testmini-00000-of-00001.parquet", [
        {"pid": "1", "decoded_image": cell(), "image": "images/1.jpg", **VISTA}]), 1, VISTA["query"], "3", ()),
    ("mathvista", lambda f: tsv(f / "MathVista_MINI.tsv", [
        {"index": 1, "image": png(), **{k: v or "" for k, v in VISTA.items() if k != "query"}}]),
     1, "How many?", "3", ()),
    ("refcoco_val", lambda f: parquet(f / "data/val-00000-of-00001.parquet", [
        {"question_id": "9", "image": cell(), "question": "...", **PHRASES}]), 2, "the dog", [BOX], ()),
    ("refcoco_testA", lambda f: tsv(f / "RefCOCO.tsv", [
        {"index": n, "image": png(), "question": "the dog", "split": split, "width": 60, "height": 40,
         "bbox_x1": 10, "bbox_y1": 5, "bbox_x2": 30, "bbox_y2": 35}
        for n, split in enumerate(("RefCOCO_testA", "RefCOCO+_testA", "RefCOCOg_test"))]), 1, "the dog", [BOX], ()),
    ("refcoco_plus_testA", expressions, 1, "the dog", [BOX], ()),
    ("pope", lambda f: parquet(f / "data/test-00000-of-00001.parquet", [{"id": "0", "question_id": "1", **POPE}]),
     1, "Is there a dog?", "yes", ()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "count", "question", "gold", "options"), LAYOUTS)
def test_a_benchmark_is_read_in_its_public_layouts(
    tmp_path: Path, name: str, make: Make, count: int, question: str, gold: object, options: tuple[str, ...]
) -> None:
    make(tmp_path)
    found = items(name, tmp_path)
    assert len(found) == count
    first = found[0]
    assert (first.question, first.gold, first.options) == (question, gold, options)
    assert open_image(first.images[0]).size == SIZE
    assert len({item.id for item in found}) == count


def test_every_benchmark_of_the_paper_has_a_layout_here() -> None:
    splits = {task.name for task in PAPERS if task.name.startswith("refcoco")}  # one reader
    assert {task.name for task in PAPERS} - {name for name, *_ in LAYOUTS} - splits == set()


def test_the_same_rows_are_read_as_jsonl_with_pictures_in_files(tmp_path: Path) -> None:
    picture_file(tmp_path / "images/1.png")
    jsonl(tmp_path / "test.jsonl", [{"type": "human", "question": "How high?", "answer": "14", "image": "1.png"}])
    (item,) = items("chartqa", tmp_path)
    assert (item.question, item.gold, item.part) == ("How high?", "14", "human")
    assert open_image(item.images[0]).size == SIZE


def test_a_folder_of_several_benchmarks_is_searched_by_name(tmp_path: Path) -> None:
    parquet(tmp_path / "ai2d/test.parquet", [{"question": "?", "options": ["a"], "answer": "0", "image": cell()}])
    assert len(items("ai2d", tmp_path)) == 1


@pytest.mark.parametrize("name", ["ai2d", "chartqa", "mmstar", "mme", "pope", "ocrbench", "realworldqa", "docvqa"])
def test_a_split_that_is_not_there_is_never_replaced_by_another(tmp_path: Path, name: str) -> None:
    for task, make, *_ in LAYOUTS:
        if task == name:
            make(tmp_path)
    with pytest.raises(UserError, match=r"has no .*train"):
        items(name, tmp_path, split="train")


def test_a_row_without_a_column_is_named(tmp_path: Path) -> None:
    tsv(tmp_path / "AI2D_TEST.tsv", [{"index": 1, "image": png(), "question": "?"}])
    with pytest.raises(UserError, match=r"AI2D_TEST.tsv line 2 has no answer, it has index, image, question"):
        items("ai2d", tmp_path)


def test_a_picture_that_is_neither_base64_nor_a_file_is_named(tmp_path: Path) -> None:
    jsonl(tmp_path / "test.jsonl", [{"question": "?", "answer": "1", "image": "no such.png"}])
    with pytest.raises(UserError, match=r"0: its image is neither base64 nor a file in"):
        items("chartqa", tmp_path)


def test_the_answers_that_mmmu_withholds_are_no_golds(tmp_path: Path) -> None:
    row = {"id": "test_Art_1", **MMMU, "answer": "?", "image_1": cell(), "image_2": None}
    parquet(tmp_path / "Art/test-00000-of-00001.parquet", [row])
    assert items("mmmu", tmp_path, split="test")[0].gold == []


@pytest.mark.parametrize(
    ("cell", "golds"),
    [
        ("""["mcdonald's", 'mcdonalds']""", ["mcdonald's", "mcdonalds"]),
        ("""['12" pipe', "12' pipe"]""", ['12" pipe', "12' pipe"]),
        ('["yes", "no"]', ["yes", "no"]),
        ("[no list", ["[no list"]),
        ("[see the note]", ["[see the note]"]),
    ],
)
def test_golds_that_are_written_as_a_list_are_told_apart_whatever_their_quotes(
    tmp_path: Path, cell: str, golds: list[str]
) -> None:
    row = {"index": 1, "question": "?", "answer": cell, "image": png()}
    for name, file in (("docvqa", "DocVQA_VAL"), ("textvqa", "TextVQA_VAL"), ("ocrbench", "OCRBench")):
        tsv(tmp_path / f"{file}.tsv", [row])
        assert items(name, tmp_path)[0].gold == golds
    tsv(tmp_path / "MathVista_MINI.tsv", [{**row, "question_type": "", "answer_type": "", "choices": cell}])
    assert items("mathvista", tmp_path)[0].notes["choices"] == golds


@pytest.mark.parametrize(("name", "file"), [("mmbench_en", "MMBench_DEV_EN"), ("realworldqa", "RealWorldQA")])
def test_an_image_may_be_that_of_another_row_of_the_tsv_before_or_after_it(
    tmp_path: Path, name: str, file: str
) -> None:
    row = {"question": "?", **OPTIONS, "answer": "B"}
    shades = {"1000": png(10), "20": png(20)}
    rows = [("7", "20"), ("1000", shades["1000"]), ("20", shades["20"]), ("8", "1000"), ("9", "20")]
    tsv(tmp_path / f"{file}.tsv", [{"index": index, "image": image, **row} for index, image in rows])
    found = [item.images[0] for item in items(name, tmp_path)]
    assert found == [shades[key] for key in ("20", "1000", "20", "1000", "20")]


@pytest.mark.parametrize("image", ["9", "1234", "2"])
def test_an_image_of_a_row_without_one_is_named(tmp_path: Path, image: str) -> None:
    rows = [{"index": "1", "image": png()}, {"index": "2", "image": image}]
    tsv(tmp_path / "AI2D_TEST.tsv", [{**row, "question": "?", **OPTIONS, "answer": "B"} for row in rows])
    with pytest.raises(UserError, match=f"AI2D_TEST.tsv: line 3 takes the image of row {image}, which has none"):
        items("ai2d", tmp_path)


def hidden_photos(folder: Path) -> None:
    picture_file(folder / "test_images/0054.jpg")
    row = {"question_id": 3, "image_id": "0054", "question": "What is it?"}
    json_file(folder / "TextVQA_0.5.1_test.json", {"data": [row]})


HIDDEN: list[tuple[str, Make]] = [
    ("mmbench_en", lambda f: tsv(f / "MMBench_TEST_EN.tsv", [
        {"index": 3, "question": "Where?", **OPTIONS, "image": png()}])),
    ("mmbench_en", lambda f: parquet(f / "en/test-00000-of-00001.parquet", [
        {**MMBENCH, "answer": None, "image": cell()}])),
    ("textvqa", lambda f: parquet(f / "data/test-00000-of-00001.parquet", [
        {"question_id": 3, "question": "?", "answers": [""] * 10, "image": cell()}])),
    ("textvqa", hidden_photos),
    ("docvqa", lambda f: parquet(f / "DocVQA/test-00000-of-00001.parquet", [
        {"questionId": "1", "question": "?", "answers": [""], "image": cell()}])),
    ("mathvista", lambda f: parquet(f / "data/test-00000-of-00001.parquet", [
        {"pid": "1", "decoded_image": cell(), **VISTA, "answer": ""}])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), HIDDEN)
def test_a_test_split_without_gold_answers_is_read_and_gives_no_points(tmp_path: Path, name: str, make: Make) -> None:
    make(tmp_path)
    (item,) = items(name, tmp_path, split="test")
    assert not has_text(item.gold)
    assert open_image(item.images[0]).size == SIZE
    for protocol in find_task(name).protocols:
        assert score(name, item, "", protocol) == 0
        assert score(name, item, "none", protocol) == 0


def test_a_task_without_data_says_what_it_reads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"docvqa reads local files: say where with --data; it reads validation"):
        list(find_task("docvqa").items(DataSource()))
    with pytest.raises(UserError, match="is not there"):
        list(find_task("docvqa").items(DataSource(data=tmp_path / "none")))


# What each protocol asks: the texts of VLMEvalKit's sets and lmms-eval's tasks; tests/eval/harness compares them with
# the installed harnesses.
CHOICE = Item(id="1", question="Where?", options=("left", "right"), gold="B", images=(png(),))
HINTED = Item(id="1", question="Where?", options=("left", "right"), gold="B", images=(png(),), notes={"hint": "Look."})
PLAIN = Item(id="1", question="How High?", gold="14", images=(png(),))
PROMPTS = [
    ("docvqa", PLAIN, "vlmevalkit", f"How High?{SHORT}"),
    ("docvqa", PLAIN, "lmms-eval", f"How High?{SHORT}"),
    ("chartqa", PLAIN, "vlmevalkit", f"How High?{SHORT}"),
    ("chartqa", PLAIN, "lmms-eval", "How High?\nAnswer the question with a single word."),
    ("textvqa", PLAIN, "lmms-eval", f"How high?{SHORT}"),
    ("textvqa", PLAIN, "vlmevalkit", f"How High?{SHORT}"),
    ("ocrbench", PLAIN, "vlmevalkit", "How High?"),
    ("mme", PLAIN, "vlmevalkit", "How High?"),
    ("mme", PLAIN, "lmms-eval", f"How High?{SHORT}"),
    ("pope", PLAIN, "lmms-eval", f"How High?{SHORT}"),
    ("mmstar", CHOICE, "vlmevalkit", f"Question: Where?\nOptions:\nA. left\nB. right\n{SELECT}"),
    ("mmstar", PLAIN, "lmms-eval", f"How High?{LETTER[:-1]}"),
    ("mmbench_en", HINTED, "vlmevalkit", f"Hint: Look.\nQuestion: Where?\nOptions:\nA. left\nB. right\n{SELECT}"),
    ("mmbench_en", HINTED, "lmms-eval", f"Look. Where? There are several options:\nA. left\nB. right\n{LETTER}"),
    ("mmbench_cn", CHOICE, "lmms-eval",
     "Where? There are several options:\nA. left\nB. right\n\n请直接使用所提供的选项字母作为答案回答。"),
    ("ai2d", CHOICE, "lmms-eval", f"Where?\nA. left\nB. right{LETTER}"),
    ("ai2d", CHOICE, "paper", f"Where?\nA. left\nB. right{LETTER}"),
    ("mmt_bench", CHOICE, "lmms-eval",
     "Question: <image>\nWhere?\nA: left\nB: right\n"
     "Answer the question using a single character from the given options."),
    ("mmmu", CHOICE, "lmms-eval", f"Where?\nA. left\nB. right\n{LETTER}"),
    ("refcoco_val", PLAIN, "paper", "<|ref|>How High?<|/ref|>."),
    ("refcoco_val", PLAIN, "lmms-eval",
     'Locate every object that matches the description "How High?" in the image. '
     "Report bbox coordinates in JSON format."),
]  # fmt: skip


@pytest.mark.parametrize(("name", "item", "protocol", "text"), PROMPTS)
def test_a_protocol_asks_in_its_own_words(name: str, item: Item, protocol: str, text: str) -> None:
    assert said(name, item, protocol) == text


SQUARE = Item(id="1", question="the dog", gold=[[0.0, 0.0, 30.0, 40.0]], notes={"size": [60, 40]})
TEXTS = Item(id="1", question="?", gold=["12 pt"])
SCORES = [
    ("docvqa", TEXTS, "paper", "12 pt.", 1.0),
    ("docvqa", TEXTS, "lmms-eval", "12 pt.", 1 - 1 / 6),
    ("chartqa", PLAIN, "paper", "14.3.", 1.0),
    ("chartqa", PLAIN, "lmms-eval", "14.3.", 0.0),
    ("ocrbench", Item(id="1", question="?", gold=["CENTRE"]), "paper", "The centre.", 1.0),
    ("mmstar", CHOICE, "vlmevalkit", "The answer is B.", 1.0),
    ("mmstar", CHOICE, "lmms-eval", "(B)", 1.0),
    ("mmstar", CHOICE, "lmms-eval", "b", 0.0),
    ("mmbench_en", CHOICE, "lmms-eval", "It is right", 1.0),
    ("ai2d", CHOICE, "lmms-eval", "B. right", 1.0),
    ("ai2d", CHOICE, "lmms-eval", "right", 0.0),
    ("mmmu", Item(id="1", question="?", options=("left", "right"), gold=["B"]), "vlmevalkit", "B.", 1.0),
    ("mmmu", Item(id="1", question="?", gold=["7", "seven"]), "vlmevalkit", "7", 1.0),
    ("mmmu", Item(id="1", question="?", gold=["7"]), "lmms-eval", "so it is 7", 1.0),
    ("mmmu", Item(id="1", question="?", options=("left", "right"), gold=[]), "vlmevalkit", "B.", 0.0),
    ("mmmu", Item(id="1", question="?", options=("left", "right"), gold=[]), "paper", "B.", 0.0),
    ("mmmu", Item(id="1", question="?", gold=[]), "vlmevalkit", "A", 0.0),
    ("mme", Item(id="1", question="?", gold="no"), "vlmevalkit", "No, it is not", 1.0),
    ("mme", Item(id="1", question="?", gold="no"), "lmms-eval", "Nothing", 1.0),
    ("realworldqa", Item(id="1", question="?", gold="2"), "lmms-eval", "2.", 1.0),
    ("refcoco_val", SQUARE, "paper", "<|ref|>the dog<|/ref|><|det|>[[0, 0, 499, 999]]<|/det|>", 1.0),
    ("refcoco_val", SQUARE, "paper", "<|ref|>the dog<|/ref|><|det|>[[500, 0, 999, 999]]<|/det|>", 0.0),
    ("refcoco_val", SQUARE, "vlmevalkit", "[0, 0, 0.5, 1]", 1.0),
    ("refcoco_val", SQUARE, "lmms-eval", '[{"bbox_2d": [0, 0, 500, 1000]}]', 1.0),
    ("refcoco_val", SQUARE, "paper", "left", 0.0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "item", "protocol", "answer", "expected"), SCORES)
def test_a_protocol_scores_by_its_own_rules(name: str, item: Item, protocol: str, answer: str, expected: float) -> None:
    assert score(name, item, answer, protocol) == pytest.approx(expected)


def test_every_benchmark_has_the_three_protocols_and_says_which_was_published() -> None:
    for task in PAPERS:
        assert set(task.protocols) == {"paper", "vlmevalkit", "lmms-eval"}, task.name
        # POPE is in none of the paper's tables.
        assert (task.published_by is None) == (task.name == "pope")


def test_infographics_are_cut_into_up_to_eighteen_tiles_by_the_papers_protocol_alone() -> None:
    assert find_task("infovqa").protocols["paper"].max_tiles == 18
    assert find_task("infovqa").protocols["lmms-eval"].max_tiles is None


def test_mathvista_needs_a_judge_for_what_is_no_bare_number() -> None:
    notes = {"is_multiple_choice": False, "answer_type": "integer", "choices": [], "precision": 0}
    item = Item(id="1", question="?", gold="3", notes=notes)
    for name in ("vlmevalkit", "lmms-eval"):
        protocol = find_task("mathvista").protocol(name)[1]
        assert protocol.score(item, "3").value == 1.0
        assert protocol.score(item, "There are three").is_undecided
        assert protocol.judge is not None
        assert protocol.judge.score(item, "3").value == 1.0


def judged(name: str, item: Item, reply: str) -> float:
    judge = find_task(name).protocol("vlmevalkit")[1].judge
    assert judge is not None
    return judge.score(item, reply).value


def test_a_judge_can_name_an_option_that_stands_in_the_question() -> None:
    item = Item(id="1", question="Where?\nA. left\nB. right", gold="B")
    for name in ("mmstar", "realworldqa"):
        judge = find_task(name).protocol("vlmevalkit")[1].judge
        assert judge is not None
        assert judge.prompt(item, "on the right").endswith(f"Question: {item.question}\n\n\nAnswer: on the right")
        assert [judged(name, item, reply) for reply in ("B", "B.", "A", "Z", "none")] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_a_judge_of_mmmu_tells_whether_an_open_answer_is_the_gold_one() -> None:
    protocol = find_task("mmmu").protocol("vlmevalkit")[1]
    item = Item(id="1", question="How many?", gold=["7", "seven"])
    assert protocol.score(item, "I count a few of them in this picture, about half a dozen").is_undecided
    assert protocol.judge is not None
    assert "How many?\nA. 7\nB. Other Answers\n" in protocol.judge.prompt(item, "half a dozen")
    assert [judged("mmmu", item, reply) for reply in ("A", "B", "Z")] == [1.0, 0.0, 0.0]
    choice = Item(id="1", question="?", options=("left", "right"), gold=["B"])
    assert [judged("mmmu", choice, reply) for reply in ("A", "B")] == [0.0, 1.0]


@pytest.mark.parametrize("protocol", ["paper", "vlmevalkit"])
def test_a_word_names_no_option_whose_text_is_in_the_question(protocol: str) -> None:
    item = Item(id="1", question="Where? A: cat, B: fox, C: cow, D: owl", gold="D")
    score = find_task("mmstar").protocol(protocol)[1].score
    assert (score(item, "dog").read, score(item, "dog").value) == ("", 0.0)
    assert (score(item, "D").value, score(item, "The answer is D.").value) == (1.0, 1.0)


def test_a_judge_of_mathvista_may_end_its_letter_or_number_with_a_full_stop() -> None:
    notes = {"is_multiple_choice": True, "answer_type": "text", "choices": ["1", "2", "33333"], "precision": 0}
    item = Item(id="1", question="?", gold="33333", notes=notes)
    assert [judged("mathvista", item, reply) for reply in ("C.", "C", "(C).", "A.")] == [1.0, 1.0, 1.0, 0.0]
    number = {"is_multiple_choice": False, "answer_type": "float", "choices": [], "precision": 1}
    assert judged("mathvista", Item(id="1", question="?", gold="3.5", notes=number), "3.5.") == 1.0


def test_mmbench_counts_a_question_only_if_all_its_rotations_are_right(tmp_path: Path) -> None:
    from tests.eval.test_interval import results

    metric = find_task("mmbench_en").metric
    assert metric(results([1.0, 0.0, 1.0, 1.0], ["3", "3", "4", "4"]))["score"] == 50.0


def test_the_interval_of_mmbench_is_that_of_its_questions_not_of_their_rotations() -> None:
    from tests.eval.test_interval import results
    from vl2.eval.interval import clopper_pearson
    from vl2.eval.task import mean_score

    task = find_task("mmbench_en")
    given = results([1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0], ["3", "3", "4", "4", "5", "5", "6", "6"])
    assert task.merge is not None
    merged = task.merge(given)
    assert [(r.id, r.score) for r in merged] == [("3", 0.0), ("4", 1.0), ("5", 1.0), ("6", 0.0)]
    assert mean_score(merged) == task.metric(given)
    assert bootstrap(mean_score, merged) == clopper_pearson(2, 4)
