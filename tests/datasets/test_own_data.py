"""What a person brings: four kinds of data, and what each row may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.own_folder import SIDE, color_rows, draw_images, write_csv, write_lines
from vl2.data.record import Record
from vl2.data.store import Located, Problem, write_records
from vl2.datasets.own_data import find_own, read_own
from vl2.errors import UserError


def records_in(location: Path) -> list[Record]:
    found = list(read_own(str(location)))
    assert all(isinstance(item, Located) for item in found), [str(item) for item in found]
    return [item.record for item in found if isinstance(item, Located)]


def texts(record: Record) -> list[str]:
    return ["".join(record.with_boxes(part.text or "(image)") for part in m.parts) for m in record.messages]


def only_record(folder: Path, **row: Any) -> Record:
    (record,) = records_in(write_lines(folder / "rows.jsonl", [row]))
    return record


def only_problem(folder: Path, **row: Any) -> str:
    (problem,) = read_own(str(write_lines(folder / "rows.jsonl", [row])))
    assert isinstance(problem, Problem)
    return str(problem)


@pytest.mark.parametrize("name", ["questions.csv", "questions.tsv", "questions.jsonl"])
def test_a_table_reads_the_same_in_every_form_and_by_its_folder(name: str, tmp_path: Path) -> None:
    rows = color_rows(tmp_path, 3)
    path = tmp_path / name
    if name.endswith("jsonl"):
        write_lines(path, rows)
    else:
        write_csv(path, rows, "\t" if name.endswith("tsv") else ",")
    for location in (path, tmp_path):
        records = records_in(location)
        assert [texts(record) for record in records] == [
            ["(image)What colour is the square?", color] for color in ("red", "green", "blue")
        ]
        assert [record.id for record in records] == ["questions-0", "questions-1", "questions-2"]
        assert {record.category for record in records} == {"vqa"}
        assert all(record.images[0].data for record in records)


def test_a_store_of_records_is_read_as_it_is(tmp_path: Path) -> None:
    made = records_in(write_csv(tmp_path / "rows.csv", color_rows(tmp_path, 3)))
    (tmp_path / "set").mkdir()
    for name in ("set/a.jsonl", "set/b.tar"):
        write_records(made, str(tmp_path / name))
        assert records_in(tmp_path / name) == made
    assert find_own(str(tmp_path / "set"))[0] == "records"
    assert len(records_in(tmp_path / "set")) == 6


def test_llavas_json_is_read_with_its_images(tmp_path: Path) -> None:
    draw_images(tmp_path, 2)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A square."}]
    row = {"id": "a", "image": "images/0.png", "conversations": turns}
    (tmp_path / "own.json").write_text(json.dumps([row]), encoding="utf-8")
    (record,) = records_in(tmp_path / "own.json")
    assert texts(record) == ["(image)What?", "A square."]
    write_lines(tmp_path / "own.jsonl", [row])
    (again,) = records_in(tmp_path / "own.jsonl")
    assert again.messages == record.messages


def test_the_file_that_is_named_is_read_and_not_one_beside_it(tmp_path: Path) -> None:
    def row(answer: str) -> dict[str, Any]:
        return {"conversations": [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": answer}]}

    (tmp_path / "train.json").write_text(json.dumps([row("an older file")]), encoding="utf-8")
    for name in ("train.jsonl", "set[1].jsonl"):
        (record,) = records_in(write_lines(tmp_path / name, [row(name)]))
        assert texts(record)[1] == name
    (older,) = records_in(tmp_path / "train.json")
    assert texts(older)[1] == "an older file"


def test_several_images_stand_where_the_question_says_or_before_it(tmp_path: Path) -> None:
    draw_images(tmp_path, 2)
    images = ["images/0.png", "images/1.png"]
    before = only_record(tmp_path, images=images, question="Which is red?", answer="the first")
    assert [part.image for part in before.messages[0].parts] == [0, 1, None]
    within = only_record(tmp_path, images=images, question="Is <image> like <image>?", answer="no")
    assert [part.image for part in within.messages[0].parts] == [None, 0, None, 1, None]
    (csv_record,) = records_in(
        write_csv(tmp_path / "rows.csv", [{"images": ";".join(images), "question": "Which?", "answer": "both"}])
    )
    assert len(csv_record.images) == 2
    assert "1 <image> for 2 images" in only_problem(tmp_path, images=images, question="<image>?", answer="no")


def test_a_box_in_pixels_becomes_a_tagged_box_of_999(tmp_path: Path) -> None:
    draw_images(tmp_path, 1)
    corners = {"x0": 0, "y0": 15, "x1": 30, "y1": SIDE}
    record = only_record(tmp_path, image="images/0.png", label="square", **corners)
    assert texts(record) == [
        "(image)<|ref|>square<|/ref|>.",
        "<|ref|>square<|/ref|><|det|>[[0, 250, 500, 999]]<|/det|>",
    ]
    assert record.category == "grounding"
    (same,) = records_in(write_csv(tmp_path / "rows.csv", [{"image": "images/0.png", "label": "square", **corners}]))
    assert same.objects == record.objects


def test_boxes_stand_where_the_answer_says(tmp_path: Path) -> None:
    draw_images(tmp_path, 2)
    boxes = [
        {"label": "square", "box": [0, 0, 30, 30]},
        {"label": "corner", "box": [30, 30, 60, 60], "image": 1},
        {"label": "square", "box": [30, 0, 60, 30]},
    ]
    images = ["images/0.png", "images/1.png"]
    record = only_record(tmp_path, images=images, question="Where?", answer="At {box:0}, not {box:1}.", boxes=boxes)
    assert texts(record)[1] == (
        "At <|ref|>square<|/ref|><|det|>[[0, 0, 500, 500], [500, 0, 999, 500]]<|/det|>, "
        "not <|ref|>corner<|/ref|><|det|>[[500, 500, 999, 999]]<|/det|>."
    )
    assert record.category == "grounded_conversation"
    listed = only_record(tmp_path, images=images, question="Where?", boxes=boxes)
    assert texts(listed)[1].count("<|ref|>") == 2


def test_text_alone_a_system_prompt_and_the_other_columns(tmp_path: Path) -> None:
    record = only_record(
        tmp_path, question="2 + 2?", answer=4, system="Be brief.", id="sum", language="de", licence="CC0-1.0"
    )
    assert [m.role for m in record.messages] == ["system", "user", "assistant"]
    assert (record.id, record.category, record.language, record.licence) == ("rows-sum", "text", "de", "CC0-1.0")
    assert texts(record)[2] == "4"


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "an image that is not there": ({"image": "no.png", "question": "?", "answer": "a"}, "no.png is not there"),
    "an image outside": ({"image": "../a.png", "question": "?", "answer": "a"}, "leads out of the folder"),
    "a folder as image": ({"image": "images", "question": "?", "answer": "a"}, "images"),
    "no answer": ({"image": "images/0.png", "question": "?"}, "answer is empty"),
    "no question": ({"image": "images/0.png", "answer": "a"}, "question is empty"),
    "a misspelt column": ({"image": "images/0.png", "qestion": "?", "answer": "a"}, "did you mean question"),
    "a box without corners": ({"image": "images/0.png", "label": "a", "x0": 1}, "a box needs label"),
    "a box outside": (
        {"image": "images/0.png", "label": "a", "x0": 500, "y0": 0, "x1": 600, "y1": 9},
        "no area in an image of 60 x 60",
    ),
    "a box of words": ({"image": "images/0.png", "label": "a", "x0": "left", "y0": 0, "x1": 6, "y1": 9}, "numbers"),
    "a box without an image": ({"question": "?", "boxes": [{"label": "a", "box": [0, 0, 9, 9]}]}, "there are 0"),
    "boxes that stand nowhere": (
        {"image": "images/0.png", "question": "?", "answer": "There.", "boxes": [{"label": "a", "box": [0, 0, 9, 9]}]},
        "write {box:0}",
    ),
    "a box too many in the answer": (
        {"image": "images/0.png", "question": "?", "answer": "{box:1}", "boxes": [{"label": "a", "box": [0, 0, 9, 9]}]},
        "names no object",
    ),
    "two forms at once": ({"image": "images/0.png", "images": [], "question": "?", "answer": "a"}, "either image or"),
    "a list as question": ({"question": ["?"], "answer": "a"}, "question must be a text"),
}


@pytest.mark.parametrize(("row", "message"), BAD.values(), ids=BAD)
def test_a_bad_row_is_a_problem_that_says_why(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    draw_images(tmp_path, 1)
    said = only_problem(tmp_path, **row)
    assert message in said
    assert "rows.jsonl line 1" in said


def test_a_bad_row_does_not_stop_the_others(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", color_rows(tmp_path, 2))
    path.write_text(
        path.read_text(encoding="utf-8") + "images/0.png,too few\nimages/1.png,What?,yes\n", encoding="utf-8"
    )
    kinds = [type(item) for item in read_own(str(path))]
    assert kinds == [Located, Located, Problem, Located]


def test_what_cannot_be_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file or folder"):
        list(read_own(str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="holds no records and no table"):
        list(read_own(str(tmp_path)))
    (tmp_path / "a.txt").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match=r"data is in \.csv"):
        list(read_own(str(tmp_path / "a.txt")))
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, color_rows(tmp_path, 1))
    with pytest.raises(UserError, match=r"several tables: name the one to use \(a.csv, b.csv\)"):
        list(read_own(str(tmp_path)))
    (tmp_path / "b.csv").write_text("picture,question\n", encoding="utf-8")
    with pytest.raises(UserError, match="has a column 'picture'"):
        list(read_own(str(tmp_path / "b.csv")))
