"""How varied records are: estimates for sources whose number of answers is known, and warnings of repetition."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from vl2.cli.main import run
from vl2.curate.diversity import MAX_REPEATS, diversity_by_source, measure
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.data.store import write_records


def picture(seed: int) -> StoredImage:
    rng = random.Random(seed)
    image = Image.new("L", (8, 8))
    image.putdata([rng.randrange(256) for _ in range(64)])
    buffer = io.BytesIO()
    image.resize((64, 64), Image.Resampling.NEAREST).save(buffer, "PNG")
    return StoredImage(data=buffer.getvalue(), width=64, height=64)


def record(number: int, answer: str, source: str = "made", look: int = 0) -> Record:
    question = Message(role="user", parts=(Part(image=0), Part(text="What is it?")))
    return Record(
        id=f"{source}-{number}", source=source, category="ocr", language="en", licence="CC0-1.0",
        messages=(question, Message(role="assistant", parts=(Part(text=answer),))), images=(picture(look),),
    )  # fmt: skip


def sentence(number: int) -> str:
    rng = random.Random(number)
    return " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(8))


@pytest.mark.parametrize("pool", [20, 100, 400])
def test_the_number_of_answers_is_estimated_from_equal_pairs(pool: int) -> None:
    rng = random.Random(pool)
    found = measure([record(n, sentence(rng.randrange(pool))) for n in range(400)])
    assert found.effective_answers is not None
    assert 0.75 * pool < found.effective_answers < 1.25 * pool
    assert found.enough_for == round(MAX_REPEATS * found.effective_answers)


def test_different_and_equal_records_are_told_apart() -> None:
    many = measure([record(n, sentence(n), look=n) for n in range(60)], planned=1000)
    one = measure([record(n, sentence(7)) for n in range(60)], planned=1000)
    assert (many.distinct_answers, one.distinct_answers) == (1.0, 1 / 60)
    assert (many.words, one.words) == (8 * 60 + 3, 8 + 3)
    assert many.repeated_phrases == 0
    assert one.repeated_phrases == pytest.approx(1 - 1 / 60)
    assert (many.effective_answers, one.effective_answers) == (None, 1.0)
    assert many.distinct_layouts is not None
    assert many.distinct_layouts > 0.9
    assert one.distinct_layouts == pytest.approx(1 / 60)
    assert many.spread > 0.3
    assert one.spread == 0
    assert many.warnings() == []
    assert ["enough for about 4 records" in one.warnings()[0], "phrases" in one.warnings()[1]] == [True, True]


def test_short_answers_and_code_are_not_warned_of() -> None:
    short = measure([record(n, "yes" if n % 2 else "no") for n in range(100)], planned=10**6)
    assert (short.enough_for, short.warnings()) == (None, [])
    code = measure([record(n, f"```python\nimport matplotlib\nprint('this is all', {n})\n```") for n in range(100)])
    assert (code.repeated_phrases, code.warnings()) == (None, [])


def test_sources_are_measured_apart() -> None:
    records = [record(n, sentence(n % 3), source="few") for n in range(40)]
    records += [record(n, sentence(n), source="many") for n in range(40)]
    few, many = diversity_by_source(records, {"few": 500})
    assert (few.source, few.planned, many.source, many.planned) == ("few", 500, "many", None)
    assert few.warnings()
    assert not many.warnings()


def test_the_preview_shows_and_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_records([record(n, sentence(n % 3), source="few") for n in range(60)], str(tmp_path / "few.jsonl"))
    out = str(tmp_path / "p.html")
    assert run(["data", "preview", str(tmp_path / "few.jsonl"), "--count", "2", "--out", out]) == 0
    said = capsys.readouterr()
    assert "repeated phrases" in said.out
    assert "warning: few: its answers are enough for about" in said.err
    assert "its answers are enough for about" in Path(out).read_text(encoding="utf-8")


def test_a_source_and_a_recipe_are_drawn_for_the_preview(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sheet.png")
    command = ["--count", "3", "--sample", "12", "--processes", "1", "--out", out, "--json"]
    assert run(["data", "preview", "scene", "--set", "tasks=count", *command]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["shown"], [each["source"] for each in said["diversity"]]) == (3, ["scene"])
    with Image.open(out) as image:
        assert image.width > 1000
    recipe = tmp_path / "stage.toml"
    recipe.write_text(
        '[[source]]\nname = "lines"\ndraw = "text_image"\ncount = 9000\n'
        '[[source]]\nname = "sums"\ndraw = "arithmetic"\ncount = 5\n[[source]]\nname = "own"\nrecords = "x.jsonl"\n',
        encoding="utf-8",
    )
    assert run(["data", "preview", str(recipe), *command]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["shown"] == 6
    assert {each["source"]: (each["records"], each["planned"]) for each in said["diversity"]} == {
        "lines": (12, 9000),
        "sums": (12, 5),
    }
    assert sorted(tmp_path.iterdir()) == [Path(out), recipe]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.jsonl", "--set", "tasks=count"], "--set is for a source that is drawn"),
        (["scene", "form"], "give one source or one recipe"),
        (["form", "--sample", "-1"], "--sample must be at least 0"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["data", "preview", *arguments]) == 1
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
