"""`vl2 extract`: every object that comes out is valid, and every answer that is not is asked for again or reported."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from PIL import Image
from pydantic import BaseModel, Field

import vl2
from tests.pdf_files import text_pdf
from vl2.errors import UserError
from vl2.extract import Document, extract, read_target
from vl2.extract.documents import file_documents
from vl2.extract.extract import Page
from vl2.extract.leaves import leaves, printed_forms
from vl2.extract.table import write_table
from vl2.infer.reply import Reply, Usage
from vl2.infer.vlm import Request

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "company": {"type": "string", "maxLength": 40},
        "total": {"type": "number", "description": "the amount to pay"},
        "items": {
            "type": "array",
            "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    },
    "required": ["company", "total"],
    "additionalProperties": False,
}


def reply(text: str, finish_reason: Any = "stop", tokens: int = 10) -> Reply:
    usage = Usage(prompt_tokens=5, visual_tokens=2, completion_tokens=tokens)
    return Reply(text=text, token_ids=(), finish_reason=finish_reason, usage=usage, image_sizes=((100, 50),))


class ErringModel:
    """Answers with the truth of a receipt, which its picture's width tells, except where it errs on purpose."""

    def __init__(self, truth: Sequence[dict[str, Any]]) -> None:
        self.truth = truth
        self.asked: list[list[Request]] = [[] for _ in truth]

    def batch(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Reply:
        (turn,) = request.messages  # type: ignore[misc]
        (image,) = turn.images  # type: ignore[union-attr]
        number = image.width - 100
        if "<|ref|>" in turn.text:  # type: ignore[union-attr]
            return reply("<|ref|>x<|/ref|><|det|>[[100, 200, 300, 400]]<|/det|>")
        self.asked[number].append(request)
        attempt, text = len(self.asked[number]), json.dumps(self.truth[number])
        kind = number % 5
        if kind == 1 and attempt == 1:
            return reply(text[: len(text) // 2], "length")
        if kind == 2 and attempt <= 2:
            return reply(text.replace('"total"', '"totals"'))
        if kind == 3:
            return reply(text[:-1], "length")
        if kind == 4 and attempt == 1:
            return reply(text[:-2], "repetition")
        return reply(text)


def receipts(count: int) -> tuple[list[dict[str, Any]], list[Document]]:
    rng = random.Random(1)
    truth = [{"company": f"Shop {rng.randrange(999)}", "total": rng.randrange(9999) / 100} for _ in range(count)]

    def page(number: int) -> list[Page]:
        return [Page(image=Image.new("RGB", (100 + number, 50)))]

    return truth, [Document(name=f"r{n}", pages=lambda n=n: page(n)) for n in range(count)]  # type: ignore[misc]


def test_every_object_is_valid_and_every_cut_answer_is_retried_or_reported() -> None:
    truth, documents = receipts(100)
    model = ErringModel(truth)
    found = list(extract(model, documents, SCHEMA))
    assert [extraction.name for extraction in found] == [f"r{n}" for n in range(100)]
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for number, extraction in enumerate(found):
        if number % 5 == 3:  # cut off each time
            assert extraction.value is None
            assert extraction.error is not None
            assert "cut off" in extraction.error
            assert extraction.attempts == 3
        else:
            assert extraction.error is None
            assert extraction.value == truth[number]
            assert validator.is_valid(extraction.value)
        assert len(model.asked[number]) == extraction.attempts == {0: 1, 1: 2, 2: 3, 3: 3, 4: 2}[number % 5]


def test_a_cut_answer_gets_more_tokens_and_a_refused_one_another_draw() -> None:
    truth, documents = receipts(4)
    model = ErringModel(truth)
    list(extract(model, documents, SCHEMA, max_new_tokens=3000))
    tokens = [[request.options.max_new_tokens for request in asked] for asked in model.asked]
    assert tokens == [[1024], [1024, 2048], [1024] * 3, [1024, 2048, 3000]]
    assert [request.options.temperature for request in model.asked[2]] == [0.0, 0.5, 0.5]
    assert len({request.options.seed for request in model.asked[2]}) == 3


def test_places_come_from_the_model_where_there_is_no_text_layer() -> None:
    truth, documents = receipts(1)
    (found,) = extract(ErringModel(truth), documents, SCHEMA)
    assert set(found.places) == {"company", "total"}
    # 100 of 999 parts of a picture of 100 x 50, as the answer has them
    assert found.places["total"].box_px == pytest.approx((10.01, 10.01, 30.03, 20.02), abs=0.01)
    assert found.places["total"].source == "model"
    (found,) = extract(ErringModel(truth), documents, SCHEMA, with_places=False)
    assert not found.places


def test_a_document_that_cannot_be_opened_is_one_error() -> None:
    truth, documents = receipts(2)

    def fail() -> list[Page]:
        raise UserError("the file is damaged")

    found = list(extract(ErringModel(truth), [documents[0], Document(name="bad", pages=fail)], SCHEMA))
    assert found[0].value == truth[0]
    assert (found[1].error, found[1].attempts) == ("the file is damaged", 0)


class Receipt(BaseModel):
    """A receipt."""

    company: str
    total: float = Field(gt=0, description="the amount to pay")


def test_a_pydantic_class_gives_instances_and_its_checks_hold() -> None:
    truth, documents = receipts(1)
    (found,) = extract(ErringModel(truth), documents, Receipt)
    assert found.instance == Receipt(**truth[0])
    (found,) = extract(ErringModel([{"company": "x", "total": 0}]), documents, Receipt)
    assert found.value is None
    assert found.error is not None
    assert "total" in found.error


def test_the_question_names_fields_and_what_they_are() -> None:
    question = read_target(SCHEMA).question()
    assert "- total: the amount to pay" in question
    assert "  - name" in question
    assert "A receipt." in read_target(Receipt).question()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"type": "array"}, "object"),
        ({"type": "object", "properties": {"a": {"type": "strin"}}}, "not valid"),
        (3, "int"),
        ("missing.json", "missing.json"),
        ("no_such_module:Class", "no_such_module"),
        ("json:Nothing", "Nothing"),
    ],
)
def test_a_wrong_target_is_one_clear_error(target: object, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_target(target)
    assert "\n" not in str(caught.value)


def test_other_properties_than_the_named_ones_are_not_written() -> None:
    item = {"type": "object", "properties": {"c": {}}}
    schema = {"type": "object", "properties": {"properties": {"type": "string"}, "b": {"type": "array", "items": item}}}
    text = json.loads(read_target(schema).constraint.text)
    assert text["additionalProperties"] is False
    assert text["properties"]["b"]["items"]["additionalProperties"] is False
    assert text["properties"]["properties"] == {"type": "string"}
    open_schema = {"type": "object", "properties": {}, "additionalProperties": True}
    assert json.loads(read_target(open_schema).constraint.text)["additionalProperties"] is True


def test_leaves_are_texts_and_numbers_with_their_paths() -> None:
    value = {"a": "x", "b": [{"c": 1.5}, {"c": 2}], "d": True, "e": None, "f": " "}
    assert list(leaves(value)) == [("a", "x"), ("b/0/c", 1.5), ("b/1/c", 2)]


def test_numbers_are_looked_for_as_pages_print_them() -> None:
    assert printed_forms(1234.5)[:2] == ["1,234.50", "1234.50"]
    assert "1.234,50" in printed_forms(1234.5)
    assert printed_forms(12)[0] == "12"
    assert "12.00" in printed_forms(12)


def test_values_of_a_pdf_are_found_in_its_text_layer(tmp_path: Path) -> None:
    pytest.importorskip("pypdfium2")
    path = tmp_path / "bill.pdf"
    path.write_bytes(text_pdf("Total 1,234.50", x=72, y=700))
    (document,) = file_documents([str(path)], dpi=72)
    (page,) = document.pages()
    assert page.image.size == (612, 792)
    assert page.find is not None
    x0, y0, x1, y1 = page.find("1,234.50") or (0, 0, 0, 0)
    # At 72 dpi a point is a pixel; the text stands on the line at 700 points from below, 92 from above.
    assert 72 + 20 < x0 < x1 < 72 + 100
    assert 92 - 14 < y0 < y1 < 92 + 4
    assert page.find("nothing of the kind") is None

    class Model:
        def batch(self, requests: Sequence[Request]) -> list[Reply]:
            assert all("<|ref|>" not in str(request.messages) for request in requests), "the text layer has it"
            return [reply('{"company": "Total", "total": 1234.5}') for _ in requests]

    (found,) = extract(Model(), [document], SCHEMA)
    assert found.places["total"].source == "text layer"
    assert found.places["total"].page == 1


LINES = [
    {"id": "a", "value": {"total": 1, "buyer": {"name": "Li, Na"}, "items": [{"n": 1}]}},
    {"id": "b", "error": "cut off"},
    {"id": "c", "value": {"total": "2"}},
]


def test_a_table_has_a_row_for_each_document(tmp_path: Path) -> None:
    write_table(LINES, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["a", "b", "c"]
    assert rows[0]["buyer.name"] == "Li, Na"
    assert json.loads(rows[0]["items"]) == [{"n": 1}]
    assert rows[1]["error"] == "cut off"
    pq = pytest.importorskip("pyarrow.parquet")
    write_table(LINES, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pylist()[0]["total"] == "1"


def test_the_model_fills_a_schema() -> None:
    vlm = vl2.load("nano")
    image = Image.open(Path(__file__).parents[2] / "examples" / "word.png")
    document = Document(name="word", pages=lambda: [Page(image=image)])
    schema = {"type": "object", "properties": {"n": {"enum": [3, 12]}}, "required": ["n"]}
    (found,) = extract(vlm, [document], schema)
    assert found.error is None
    assert isinstance(found.value, dict)
    assert found.value["n"] in (3, 12)
