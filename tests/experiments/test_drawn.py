"""What only the built-in model is trained on: small receipts, and what the primer shows told in words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.nano.receipt import SmallReceipt
from experiments.nano.told import Told
from tests.synth.test_primer import check_small, records
from vl2.curate.stage_recipe import read_recipe
from vl2.errors import UserError
from vl2.synth.catalog import find_source, make_source
from vl2.synth.nouns import plural

RECIPES = Path(__file__).parents[2] / "experiments" / "nano" / "recipes"

pytestmark = pytest.mark.usefixtures("no_system_fonts")


def test_pictures_are_small_and_questions_differ() -> None:
    check_small(records(SmallReceipt()))


def test_a_source_is_found_by_its_import_path() -> None:
    source = make_source("experiments.nano.told:Told", {"turns": 2})
    assert (type(source), source.name) == (Told, "primer_told")
    with pytest.raises(UserError, match="is not a synthetic source"):
        find_source("experiments.nano.told:make_table")
    with pytest.raises(UserError, match=r"draw: cannot import 'experiments\.nano\.tolt:Told'"):
        find_source("experiments.nano.tolt:Told")


def test_the_recipe_of_the_data_names_sources_that_are_there() -> None:
    drawn = {entry.draw for entry in read_recipe(str(RECIPES / "data.toml")).sources}
    assert {"primer_scene", "experiments.nano.told:Told", "experiments.nano.receipt:SmallReceipt"} <= drawn


def test_the_total_of_a_receipt_is_the_sum_of_its_prices() -> None:
    for record in records(SmallReceipt(tasks=("read",), turns=1, languages=("en",))):
        *goods, total = (record.messages[1].parts[0].text or "").split("\n")[2:]
        cents = [int(line.rsplit(" ", 1)[1].replace(".", "")) for line in (*goods, total)]
        assert 1 <= len(goods) <= 4
        assert sum(cents[:-1]) == cents[-1]


def test_what_is_told_holds_its_answers() -> None:
    found = dict.fromkeys(("lookup", "repeat", "count", "presence"), 0)
    for record in records(Told(), 200):
        assert not record.images
        assert record.category == "text"
        texts = [message.parts[-1].text or "" for message in record.messages]
        told = texts[0]
        for question, answer in zip(texts[::2], texts[1::2], strict=True):
            last = question.split("\n")[-1]
            if match := re.search(r"How many (.+) are there|Count the (.+) in|number of (.+)\?", last):
                found["count"] += 1
                shown = told.split("\n")[0].split(", ")
                noun = next(name for name in match.groups() if name)
                words = {plural(name.split(" ", 1)[1]): shown.count(name) for name in shown}
                assert answer == str(words[noun])
            elif match := re.search(r"(?:Is there|show|see) (an? .+?)(?: in the image)?\?", last):
                if answer in ("Yes.", "No."):
                    found["presence"] += 1
                    assert (match[1] in told.split("\n")[0].split(", ")) == (answer == "Yes.")
            elif match := re.search(r"Repeat: (.+)|Say this again: (.+)", last):
                found["repeat"] += 1
                assert answer in match.groups()
            elif match := re.search(r"What value does the chart show for (.+)\?", last):
                found["lookup"] += 1
                assert f"{match[1]}: {answer}" in told.split("\n")
    assert min(found.values()) > 5
