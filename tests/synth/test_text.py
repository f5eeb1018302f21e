"""Drawn text: fonts that cover it, boxes around its ink, receipts that add up, letters that hold the answer."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vl2.errors import UserError
from vl2.synth import fonts, words
from vl2.synth.distort import apply, distort
from vl2.synth.document import Document, write_letter
from vl2.synth.form import Form
from vl2.synth.page import PAPERS, Page, ink_for, make_paper, wrap
from vl2.synth.receipt import Receipt, _note_total, _print, as_json, make_purchase, money, rows_of
from vl2.synth.source import generate, rng_for
from vl2.synth.text_image import TextImage

NO_FONTS = ()  # no folder: the built-in font alone


def test_the_built_in_font_is_always_there_and_knows_what_it_cannot_draw() -> None:
    assert fonts.find_faces(NO_FONTS) == (fonts.BUILT_IN,)
    assert fonts.covers(fonts.BUILT_IN, "Total 12.50")
    assert not fonts.covers(fonts.BUILT_IN, "合计")
    assert fonts.languages(NO_FONTS) == ("en",)
    assert fonts.choose_face(random.Random(0), "合计", NO_FONTS) is None
    assert all(r.language == "en" for r in generate(TextImage(font_folders=NO_FONTS), 10))


def test_every_face_draws_different_letters() -> None:
    for face in fonts.find_faces():
        font = fonts.load(face, 20)
        assert len({bytes(font.getmask(char)) for char in "ABCabc123"}) == 9, face


@pytest.mark.parametrize("size_px", [12, 25, 60])
def test_the_box_of_a_text_is_the_box_of_its_ink(size_px: int) -> None:
    page = Page(Image.new("RGB", (700, 120), (255, 255, 255)))
    box = page.write((20, 20), "Gypsy jumps 42!", fonts.load(fonts.BUILT_IN, size_px), (0, 0, 0))
    rows, columns = (np.asarray(page.image)[:, :, 0] < 250).nonzero()
    assert np.abs(np.subtract(box, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))).max() == 0


def test_boxes_follow_a_distorted_page() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        page = Image.new("RGB", (400, 300), (255, 255, 255))
        page.paste((0, 0, 0), (120, 90, 240, 130))
        moved = distort(page, rng, 2)
        # The middle of the black bar is where the matrix says, and outside the moved box nothing of it is left.
        x, y = apply(moved.matrix, (180, 110))
        grey = np.asarray(moved.image.convert("L")).astype(int)
        assert grey[round(y), round(x)] < 110
        x0, y0, x1, _ = moved.move((120, 90, 240, 130))
        edge = grey[round(y0) - 6, round((x0 + x1) / 2)]
        assert edge > grey[round(y), round(x)] + 40


@pytest.mark.parametrize("kind", PAPERS)
def test_ink_can_be_read_on_every_paper(kind: str) -> None:
    rng = random.Random(1)
    paper = np.asarray(make_paper(kind, (200, 150), rng).convert("L")).astype(int)
    red, green, blue = ink_for(kind, rng)
    assert abs(np.median(paper) - (0.3 * red + 0.59 * green + 0.11 * blue)) > 90


def test_wrapping_keeps_every_character() -> None:
    font = fonts.load(fonts.BUILT_IN, 20)
    for passage in words.PASSAGES["en"]:
        lines = wrap(passage, font, 200, "en")
        assert " ".join(lines) == passage
        assert all(font.getlength(line) <= 200 or " " not in line for line in lines)
    for passage in words.PASSAGES["zh"]:
        lines = wrap(passage, font, 200, "zh")
        assert "".join(lines) == passage
        assert not any(line[0] in "，。、" for line in lines)


def test_texts_come_from_a_file_without_the_models_markers(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("zebra quagga okapi\n\n<|ref|>evil<|/ref|>\nan <image> too\n", encoding="utf-8")
    assert words.read_passages(str(file)) == ("zebra quagga okapi",)
    source = TextImage(texts_en=str(file), languages=("en",), tasks=("paragraph",))
    assert all(r.messages[1].parts[0].text == "zebra quagga okapi" for r in generate(source, 3))
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds no passage"):
        words.read_passages(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("seed", range(30))
def test_receipts_add_up_to_the_cent(seed: int) -> None:
    purchase = make_purchase(random.Random(seed), "en")
    items = sum(Decimal(item.count) * Decimal(money(item.price_cents)) for item in purchase.items)
    tax = (items * purchase.tax_percent / 100).quantize(Decimal("0.01"), "ROUND_HALF_UP")
    assert Decimal(money(purchase.total_cents)) == items + tax
    assert Decimal(money(purchase.change_cents)) == Decimal(money(purchase.cash_cents)) - items - tax >= 0
    fields = json.loads(as_json(purchase))
    assert Decimal(fields["total"]) == items + tax
    assert sum(Decimal(item["amount"]) for item in fields["items"]) == items


def test_receipt_answers_are_printed_on_the_receipt() -> None:
    for language in fonts.languages():
        for index in range(20):
            source = Receipt(languages=(language,), tasks=("field",))
            record = source.make(index, 0)
            rng = rng_for(0, "receipt", index)
            rng.choice([language])
            source.pick_task(rng)
            purchase = make_purchase(rng, language)
            printed = {
                purchase.shop,
                purchase.date,
                money(purchase.total_cents),
                money(purchase.tax_cents),
                money(purchase.change_cents),
            }
            assert {m.parts[0].text for m in record.messages if m.role == "assistant"} <= printed


def test_letters_answer_their_questions() -> None:
    for language in ("en", "zh"):
        for seed in range(20):
            letter = write_letter(random.Random(seed), language)
            page = " ".join((letter.date, letter.subject, *letter.paragraphs))
            assert all(answer in page for answer in letter.answers.values())
            assert "{" not in page
    turns = [len(record.messages) for record in generate(Document(tasks=("questions",)), 10)]
    assert min(turns) >= 4


def test_forms_become_json_and_places() -> None:
    for record in generate(Form(tasks=("json",), languages=("en",)), 5):
        assert len(json.loads(record.messages[1].parts[0].text or "")) >= 3
    for record in generate(Form(tasks=("locate",)), 10):
        assert record.category == "grounding"
        assert re.fullmatch(r"\{box:0\}", record.messages[1].parts[0].text or "")


def test_a_receipt_is_printed_row_by_row_and_its_boxes_are_around_the_ink() -> None:
    for seed in range(12):
        rng = random.Random(seed)
        purchase = make_purchase(rng, "en")
        rows = rows_of(purchase, "en", rng)
        printed = " ".join(f"{row.left} {row.right}" for row in rows)
        assert all(item.name in printed and money(item.amount_cents) in printed for item in purchase.items)
        page, boxes = _print(rows, fonts.load(fonts.BUILT_IN, 18), rng)
        gray = np.asarray(page.image.convert("L")).astype(int)
        for x0, y0, x1, y1 in boxes.values():
            inside = gray[int(y0) : int(y1), int(x0) : int(x1)]
            assert inside.min() < gray.max() - 60


def test_a_total_noted_by_hand_is_below_the_receipt() -> None:
    rng = random.Random(1)
    purchase = make_purchase(rng, "en")
    page, _ = _print(rows_of(purchase, "en", rng), fonts.load(fonts.BUILT_IN, 18), rng)
    before = page.image.copy()
    noted = _note_total(page, purchase, rng).image
    assert noted.height > before.height
    assert noted.crop((0, 0, *before.size)).tobytes() == before.tobytes()
    below = np.asarray(noted.convert("L")).astype(int)[before.height :]
    assert below.min() < below.max() - 60
