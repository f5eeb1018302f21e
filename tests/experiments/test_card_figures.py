"""The figures of an evaluation go into the card and the page, and change nothing else there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from experiments.nano.card_figures import CARD, HELD_OUT, PAGE, SCORES, Figure, held_out_figures, in_card, in_page
from vl2.errors import UserError

NUMBERS = re.compile(r"[\d.]+")
FIGURE = Figure(label="", count=77, percent=12.345, low=6.25, high=21.5)


@pytest.mark.parametrize("label", [*HELD_OUT.values(), *SCORES.values()])
def test_a_figure_changes_in_all_three_places_and_nothing_else_does(label: str) -> None:
    card, page = (path.read_text(encoding="utf-8") for path in (CARD, PAGE))
    figure = replace(FIGURE, label=label)
    new_card, new_page = in_card(card, figure), in_page(page, figure)
    [result] = [r for r in ModelCard(new_card).data.eval_results or [] if r.dataset_name.lower() == label.lower()]
    assert (result.metric_value, str(result.metric_name)[-12:]) == (12.3, "6.2 to 21.5".rjust(12))
    assert f"{label} | 12.3 (6.2 to 21.5) |".lower() in new_page.lower()
    for old, new in ((card, new_card), (page, new_page)):
        assert NUMBERS.sub("#", old) == NUMBERS.sub("#", new)
        changed = [a for a, b in zip(old.splitlines(), new.splitlines(), strict=True) if a != b]
        assert 1 <= len(changed) <= 4


def test_a_figure_without_a_row_is_an_error() -> None:
    figure = replace(FIGURE, label="Sheet music")
    with pytest.raises(UserError, match="“Sheet music” must stand in one row, not in 0"):
        in_page(PAGE.read_text(encoding="utf-8"), figure)


def test_the_figures_of_an_evaluation_are_read(tmp_path: Path) -> None:
    path = tmp_path / "held-out.json"
    row = {"task": "count", "title": "Count", "count": 40, "figure": 55.0, "low": 40, "high": 70.5, "mark": None}
    path.write_text(json.dumps({"rows": [row, {**row, "task": "another"}]}), encoding="utf-8")
    assert held_out_figures(path) == [Figure(label=HELD_OUT["count"], count=40, percent=55.0, low=40.0, high=70.5)]


@pytest.mark.parametrize(
    "text", ["", '{"rows": [{"ta', '{"a": 1}', "[]", '{"rows": 1}', '{"rows": [{"task": "count"}]}']
)
def test_a_file_of_figures_that_is_cut_off_or_wrong_is_an_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "held-out.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"held-out\.json is not what experiments\.nano\.held_out writes"):
        held_out_figures(path)
