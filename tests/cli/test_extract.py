"""`vl2 extract` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_stopped_run_goes_on_and_other_settings_are_refused(vl2, tmp_path: Path) -> None:
    schema = tmp_path / "word.schema.json"
    schema.write_text(json.dumps({
        "type": "object", "properties": {"text": {"type": "string", "maxLength": 12}}, "required": ["text"],
        "additionalProperties": False,
    }))  # fmt: skip
    out = tmp_path / "words.csv"
    pictures = Path(__file__).parents[2] / "examples"
    command = ["extract", str(schema), str(pictures / "word.png"), str(pictures / "line.png"), "-o", str(out)]
    assert vl2(*command).code == 0
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [Path(line["id"]).name for line in lines] == ["word.png", "line.png"]
    assert all(isinstance(line["value"]["text"], str) for line in lines)
    assert len(out.read_text().splitlines()) == 3
    before = out.with_suffix(".jsonl").read_text()
    assert vl2(*command).code == 0
    assert out.with_suffix(".jsonl").read_text() == before
    assert "--fresh" in vl2(*command, "--no-places").err


@pytest.mark.parametrize("out", ["table.xlsx", "folder"])
def test_another_kind_of_table_is_refused(vl2, out: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps({"type": "object"}))
    result = vl2("extract", str(tmp_path / "s.json"), "examples/word.png", "-o", str(tmp_path / out))
    assert result.code == 1
    assert ".csv" in result.err
