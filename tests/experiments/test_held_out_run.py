"""The command that scores a checkpoint on the held-out pictures, on tasks of few items."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest
from matplotlib import get_data_path

from experiments.nano.held_out import __main__ as command
from experiments.nano.held_out import catalogue, fonts, result_table, tables
from experiments.nano.held_out.catalogue import ENTRIES, Entry
from vl2.errors import UserError
from vl2.eval.task import Result


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which every font is one that is always there, and nothing is downloaded."""
    kept = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for language, packages in fonts.FILES.items():
        for names in packages.values():
            for name in names:
                file = tmp_path / "data" / "fonts" / language / name
                file.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(kept, file)
    monkeypatch.setattr(command, "fetch", lambda names, to, side_px: iter(()))
    return tmp_path / "data"


def arguments(data: Path, out: Path, *only: str, model: str = "nano", real: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(model=model, out=out, limit=2, only=list(only), data=data, real=real, batch_size=2)


def test_a_run_writes_a_table_and_sheets(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert command.score(arguments(data, out, "count", "demo", "nlvr")) == 0
    table = (out / "held-out.md").read_text(encoding="utf-8")
    assert table in capsys.readouterr().out
    assert "| `count` | Count shapes, one to nine | 2 |" in table
    assert "Not run: nlvr, --real has no folder nlvr." in table
    values = json.loads((out / "held-out.json").read_text(encoding="utf-8"))
    assert [(row["task"], row["mark"]) for row in values["rows"]] == [("count", 92), ("demo", 85)]
    assert sorted(path.name for path in (out / "sheets").iterdir()) == ["count.png", "demo.png"]
    assert command.score(arguments(data, out, "count", "demo", "nlvr")) == 0  # goes on with what is done
    assert (out / "held-out.md").read_text(encoding="utf-8") == table


def test_sheets_can_be_drawn_without_a_model(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert command.score(arguments(data, out, "locate", model="none")) == 0
    assert (out / "sheets" / "locate.png").is_file()
    assert not (out / "held-out.md").exists()


def test_a_missing_tool_is_an_error_before_anything_is_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BROWSERS", ("no-such-browser",))
    monkeypatch.setattr(command, "load", lambda _: pytest.fail("a model was loaded"))
    with pytest.raises(UserError, match="the held-out tables are set by Chromium: install chromium"):
        command.score(arguments(data, tmp_path / "out", "count", "tables"))


def test_a_missing_font_is_an_error(data: Path) -> None:
    (data / "fonts" / "en" / "Karla-Regular.otf").unlink()
    with pytest.raises(UserError, match=r"Karla-Regular\.otf is missing"):
        fonts.fonts_in(data / "fonts")


def test_every_task_has_one_name_and_most_have_a_mark() -> None:
    names = [entry.task.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    assert {entry.task.name for entry in ENTRIES if entry.mark is None} == {"lines_en_several"}


def result(id: int, part: str, score: float, answer: str = "5", gold: str = "5") -> Result:
    return Result(
        id=str(id), part=part, cluster="", prompt="?", answer=answer, read="", gold=gold, score=score,
        is_undecided=False, finish_reason="stop", prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip


def entry_of(name: str) -> Entry:
    return next(entry for entry in catalogue.ENTRIES if entry.task.name == name)


def test_a_mark_for_every_part_is_missed_by_one() -> None:
    results = [result(n, "small" if n < 10 else "large", float(n < 18)) for n in range(20)]
    whole = result_table.row_of(entry_of("tables"), results)
    assert (whole.figure, whole.mark, whole.is_reached) == (90.0, 80, True)
    charts = [result(n, "small" if n < 10 else "large", float(n < 17)) for n in range(20)]
    parts = result_table.row_of(entry_of("chart_printed"), charts)
    assert (parts.figure, parts.mark, parts.is_reached) == (85.0, 80, False)
    assert parts.parts == {"large": (10, 70.0), "small": (10, 100.0)}
    # Clopper and Pearson's interval of 18 of 20, from tables.
    assert (round(whole.low, 1), round(whole.high, 1)) == (68.3, 98.8)


def test_what_one_answer_would_reach_is_said() -> None:
    results = [result(n, "", 1.0, gold="yes" if n < 6 else "no") for n in range(10)]
    assert result_table.row_of(entry_of("presence"), results).always_one == 60.0


def test_needless_admissions_are_counted_where_answers_are_free() -> None:
    said = [result(1, "", 0.0, "I cannot tell."), result(2, "", 1.0)]
    found = {name: (entry_of(name), said) for name in ("count", "presence", "photos")}
    assert result_table.needless_admissions(found) == (1, 2)
