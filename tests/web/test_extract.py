"""Extraction: fields or a schema, the values in a table with their boxes, and files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import add, choose, fill_fields, rect, send, wait_until
from vl2.extract.extract import LOCATE_TOKENS, MAX_LOCATED
from vl2.extract.leaves import printed_forms
from vl2.extract.table import rows
from vl2.extract.target import Target
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.prompts import locate_prompt

VALUE = {"number": "A-1 \"x\", 'y'", "total": 1234.5, "paid": True, "items": ["Tea", "Bun"], "due": None}
FIELDS = (("number", "text"), ("total", "number"), ("paid", "flag"), ("items", "list"), ("due", "text"))
SCHEMA = {
    "title": "Invoice",
    "type": "object",
    "$defs": {"Party": {"type": "object", "properties": {"name": {"type": "string", "description": "in full"}}}},
    "properties": {
        "buyer": {"$ref": "#/$defs/Party"},
        "lines": {"type": "array", "items": {"type": "object", "properties": {"price": {"type": "number"}}}},
    },
}


def asked(backend: ScriptedBackend, index: int) -> str:
    ids = backend.requests[index].sample.input_ids.tolist()
    return backend.processor.tokenizer.decode(ids, skip_special=False)


def send_fields(page: Any, picture: Path) -> None:
    add(page, picture)
    choose(page, "extract")
    fill_fields(page, *FIELDS)
    page.click("#send")
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false]')")


def test_fields_are_extracted_with_the_places_of_their_values(
    page: Any, backend: ScriptedBackend, picture: Path, tmp_path: Path
):
    backend.text = json.dumps(VALUE)
    backend.later = "<|ref|>it<|/ref|><|det|>[[100, 200, 500, 300]]<|/det|>"
    send_fields(page, picture)
    schema = json.loads(page.evaluate(
        "import('/web/extraction.js').then(m => JSON.stringify(m.schemaOf("
        "[{name: 'number', type: 'text'}, {name: 'total', type: 'number'}, {name: 'paid', type: 'flag'},"
        " {name: 'items', type: 'list'}, {name: 'due', type: 'text'}])))"
    ))  # fmt: skip
    assert Target(schema=schema).check(json.dumps(VALUE)) == VALUE
    assert Target(schema=schema).question() in asked(backend, 0)
    assert isinstance(backend.requests[0].options.constraint, JsonSchema)
    cells = page.evaluate(
        "[...document.querySelectorAll('.values tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    assert cells == [["number", VALUE["number"]], ["total", "1234.5"], ["paid", "yes"], ["items 1", "Tea"],
                     ["items 2", "Bun"], ["due", "not found"]]  # fmt: skip
    # Each text and number is asked for once, as vl2.extract does.
    located = [VALUE["number"], VALUE["total"], "Tea", "Bun"]
    assert len(backend.requests) == 1 + len(located)
    for index, value in enumerate(located, start=1):
        assert locate_prompt(f"the text {printed_forms(value)[0]!r}") in asked(backend, index)
        assert isinstance(backend.requests[index].options.constraint, WellFormedBoxes)
        assert backend.requests[index].options.max_new_tokens == LOCATE_TOKENS
    left, _top, right, _bottom = rect(page.locator(".frame img"))
    x0, _y0, _x1, _y1 = rect(page.locator(".box").first)
    assert abs((x0 - left) / (right - left) - 100 / 999) < 0.01
    page.hover(".values tbody tr >> nth=1")
    lit = "[...document.querySelectorAll('.box.is-lit .box-label')].map(e => e.textContent)"
    assert page.evaluate(lit) == ["total"]
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    download.value.save_as(tmp_path / "values.csv")
    assert download.value.suggested_filename == "halves.csv"
    with (tmp_path / "values.csv").open(newline="", encoding="utf-8") as file:
        (found,) = csv.DictReader(file)
    (expected,) = rows([{"id": "halves.png", "value": VALUE}])
    assert json.loads(found.pop("items")) == json.loads(expected.pop("items"))
    assert found == {
        name: "" if value is None else "true" if value is True else str(value)
        for name, value in expected.items()
        if name != "error"
    }
    with page.expect_download() as download:
        page.locator(".answer-tools").get_by_text("JSON", exact=True).click()
    download.value.save_as(tmp_path / "values.json")
    told = json.loads((tmp_path / "values.json").read_text(encoding="utf-8"))
    assert told["value"] == VALUE
    assert told["places"][1] == {"path": "total", "page": 0, "box": [100, 200, 500, 300]}
    page.reload()
    wait_until(page, "() => document.querySelectorAll('.box').length === 4")


def test_the_question_of_a_schema_is_that_of_the_python_api(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = '{"buyer": {"name": "Ann"}, "lines": []}'
    add(page, picture)
    choose(page, "extract")
    page.click("#toggle-schema")
    page.fill("#schema", json.dumps(SCHEMA))
    page.click("#send")
    wait_until(page, "() => document.querySelector('.answer[aria-busy=false]')")
    target = Target(schema=SCHEMA)
    assert target.question() in asked(backend, 0)
    assert backend.requests[0].options.constraint == target.constraint
    assert page.locator(".values td").all_inner_texts() == ["Ann", "not found"]
    page.reload()
    choose(page, "extract")
    assert json.loads(page.input_value("#schema")) == SCHEMA  # what was typed last is there again


def test_no_more_values_are_located_than_by_the_python_api(page: Any):
    count = """async (most) => {
      const { placeQuestions } = await import("/web/extraction.js");
      return placeQuestions(JSON.stringify({ items: Array(most + 5).fill("x") }), 1).length;
    }"""
    assert page.evaluate(count, MAX_LOCATED) == MAX_LOCATED


@pytest.mark.parametrize(
    ("fields", "schema", "told"),
    [
        ((("", "text"),), None, "Name a field to extract first."),
        ((("a", "text"), ("a", "number")), None, "Two fields have the same name."),
        ((), "no JSON", 'This is not a JSON schema with "type": "object".'),
        ((), '{"type": "array"}', 'This is not a JSON schema with "type": "object".'),
    ],
)
def test_a_form_that_is_not_complete_is_told(
    page: Any, backend: Any, picture: Path, fields: Any, schema: Any, told: str
):
    add(page, picture)
    choose(page, "extract")
    fill_fields(page, *fields)
    if schema is not None:
        page.click("#toggle-schema")
        page.fill("#schema", schema)
    page.click("#send")
    assert page.locator("#composer-error").inner_text() == told
    assert backend.requests == []


def test_an_answer_that_was_cut_off_is_told(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = '{"number": "A-'
    send_fields(page, picture)
    assert "The answer is not complete" in page.locator(".notes").inner_text()
    assert page.locator(".answer-text pre").inner_text() == '{"number": "A-'
    assert len(backend.requests) == 1


def test_stopping_ends_the_search_for_places(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = '{"number": "A", "total": 1, "paid": null, "items": [], "due": null}'
    backend.later, backend.pause_after = "<|ref|>it<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>", 0
    add(page, picture)
    choose(page, "extract")
    fill_fields(page, *FIELDS)
    page.click("#send")
    backend.go_on()
    wait_until(page, "() => document.querySelector('.values')")
    page.wait_for_selector("#send", state="visible")
    backend.may_go_on = False
    page.get_by_role("button", name="Try again").click()
    wait_until(page, "() => !document.getElementById('stop').hidden")
    page.click("#stop")
    page.wait_for_selector(".note >> text=Stopped.")
    send(page)
    assert page.locator("#composer-error").inner_text() == "Type a question first."
