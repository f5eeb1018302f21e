"""Stamps and handwriting: the box is around the ink, and what lies below a stamp can still be seen."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from vl2.synth import fonts
from vl2.synth.document import Document
from vl2.synth.form import Form
from vl2.synth.handwriting import write_by_hand
from vl2.synth.page import Page
from vl2.synth.source import generate
from vl2.synth.stamp import draw_stamp, press

WHITE = (255, 255, 255)


def changed(page: Image.Image) -> np.ndarray:
    return np.asarray(page.convert("L")) < 235


@pytest.mark.parametrize("seed", range(12))
def test_the_box_of_a_stamp_is_around_its_ink(seed: int) -> None:
    rng, page = random.Random(seed), Image.new("RGB", (500, 400), WHITE)
    stamp = draw_stamp(rng, "en")
    assert stamp is not None
    box = press(page, stamp, rng, (0, 0, 500, 400))
    assert box is not None
    rows, columns = changed(page).nonzero()
    assert np.abs(np.subtract(box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))).max() <= 3


def test_print_below_a_stamp_stays_darker_than_the_stamp() -> None:
    rng, page = random.Random(1), Image.new("RGB", (300, 300), WHITE)
    page.paste((30, 30, 30), (0, 140, 300, 160))
    stamp = draw_stamp(rng, "en")
    assert stamp is not None
    assert press(page, stamp, rng, (0, 60, 300, 240)) is not None
    gray = np.asarray(page.convert("L")).astype(int)
    assert gray[141:159].max() <= 30
    assert gray[:140].min() > 35


def test_a_stamp_that_does_not_fit_is_not_pressed() -> None:
    page, stamp = Image.new("RGB", (60, 60), WHITE), draw_stamp(random.Random(0), "en")
    assert stamp is not None
    assert press(page, stamp, random.Random(0), (0, 0, 10, 10)) is None
    assert not changed(page).any()


@pytest.mark.parametrize("seed", range(8))
def test_the_box_of_handwriting_is_around_its_ink(seed: int) -> None:
    page = Page(Image.new("RGB", (500, 120), WHITE))
    font = fonts.load(fonts.BUILT_IN, 24)
    box = write_by_hand(page, (40, 40), "Jumpy figs 42", font, (0, 0, 0), random.Random(seed))
    rows, columns = changed(page.image).nonzero()
    assert np.abs(np.subtract(box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))).max() <= 2
    straight = Page(Image.new("RGB", (500, 120), WHITE))
    straight.write((40, 40), "Jumpy figs 42", font, (0, 0, 0))
    assert straight.image.tobytes() != page.image.tobytes()


def test_stamps_on_forms_and_letters_are_asked_about() -> None:
    asked = list(generate(Form(tasks=("stamp",), languages=("en",)), 12))
    assert {record.category for record in asked} == {"document", "grounding"}
    letters = generate(Document(tasks=("questions",), languages=("en",), stamped=1.0), 6)
    said = [message.parts[-1].text or "" for record in letters for message in record.messages]
    assert sum("stamp" in text for text in said) >= 4
