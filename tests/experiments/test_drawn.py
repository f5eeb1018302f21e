"""What the built-in model is trained on: answers are what is drawn, and what is held out never comes."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from experiments.nano.draw.charts import Charts
from experiments.nano.draw.forms import FORMS, LOOKS, Look, draw_form, shade
from experiments.nano.draw.frame import GRIDS, LEAST_PX, MOST_PX, canvas_of, choose_size, scale_of
from experiments.nano.draw.held_out import has_held_out_word, is_held_out_phrasing
from experiments.nano.draw.lines import Lines
from experiments.nano.draw.phrasing import expand, grammars, phrase
from experiments.nano.draw.real import RealReceipts, RealStatements
from experiments.nano.draw.receipts import Receipts
from experiments.nano.draw.scenes import Places, Scenes, _Asker
from experiments.nano.draw.signs import with_signs
from experiments.nano.draw.statements import Item, make_statement
from experiments.nano.draw.tables import Tables
from experiments.nano.draw.things import compose, draw_thing
from experiments.nano.draw.told import Told
from experiments.nano.splits import is_test_scene, is_test_shop
from tests.experiments.drawn import records, turns
from tests.experiments.nano_inputs import held_out_words
from vl2.data.record import PLACEHOLDER
from vl2.errors import UserError
from vl2.synth import fonts
from vl2.synth.catalog import find_source, make_source
from vl2.synth.draft import Draft
from vl2.synth.scene import Composed
from vl2.synth.shapes import COLORS
from vl2.synth.source import Source
from vl2.synth.sprites import built_in_kinds

pytestmark = pytest.mark.usefixtures("no_system_fonts")


def test_a_source_is_found_by_its_import_path(inputs: str) -> None:
    source = make_source("experiments.nano.draw.told:Told", {"inputs": inputs, "turns": 2})
    assert (type(source), source.name) == (Told, "nano_told")
    with pytest.raises(UserError, match="is not a synthetic source"):
        find_source("experiments.nano.draw.told:make_table")


def test_without_inputs_nothing_is_drawn() -> None:
    with pytest.raises(UserError, match="there are no inputs at nowhere"):
        Lines(inputs="nowhere")


@pytest.mark.parametrize("kind", [Lines, Tables, Charts, Receipts, Scenes, Places])
def test_every_box_lies_in_its_picture_and_no_question_is_asked_twice(kind: type[Source], inputs: str) -> None:
    made = records(kind(inputs=inputs, languages=("en",)))  # type: ignore[call-arg]
    assert len(made) >= 20
    for record in made:
        (image,) = record.images
        assert max(image.width, image.height) <= MOST_PX + 40, "a page that is turned is a little wider"
        assert all(0 <= x0 <= x1 <= image.width and 0 <= y0 <= y1 <= image.height
                   for shown in record.objects for x0, y0, x1, y1 in shown.boxes_px)  # fmt: skip
        questions = [question for question, _ in turns(record) if "<|ref|>" not in question]
        assert len(set(questions)) == len(questions)


def test_no_picture_shows_a_word_that_is_held_out(inputs: str) -> None:
    held_out = held_out_words()
    assert 2 <= len(held_out) <= 14, "the lists of the test have some"
    for kind in (Tables, Charts, Receipts, Lines):
        for record in records(kind(inputs=inputs, languages=("en",))):
            shown = " ".join(text for turn in turns(record) for text in turn).casefold()
            assert not {word for word in held_out if re.search(rf"\b{word.casefold()}\b", shown)}


def test_the_rule_for_words_is_that_of_the_tests() -> None:
    words = [f"word{'abcdefghij'[n % 10]}{'klmnopqrst'[n // 10]}" for n in range(100)]
    by_hand = {w for w in words if int.from_bytes(hashlib.sha256(f"word/{w}".encode()).digest()[:4], "big") % 5 == 0}
    assert by_hand == {word for word in words if has_held_out_word(word.upper())}
    assert has_held_out_word(f"the {next(iter(by_hand)).title()}, again")
    assert not has_held_out_word("12.50")


def test_a_third_of_the_phrasings_is_never_asked() -> None:
    rng, everything = random.Random(1), set[str]()
    for question, by_language in grammars().items():
        for language in ("en", "zh"):
            said = {expand(rng.choice(by_language[language]), rng) for _ in range(150)}
            names = {name for sentence in said for name in re.findall(r"\{(\w+)\}", sentence)}
            asked = {phrase(question, language, rng, **{name: "{" + name + "}" for name in names}) for _ in range(150)}
            assert not any(map(is_held_out_phrasing, asked)), question
            assert len(said) > 4, question
            everything |= said
    held_out = {text for text in everything if int(hashlib.sha256(text.encode()).hexdigest(), 16) % 3 == 0}
    assert held_out == set(filter(is_held_out_phrasing, everything))
    assert 0.3 < len(held_out) / len(everything) < 0.37


def test_some_questions_are_typed_in_haste() -> None:
    asked = [phrase("presence", "en", random.Random(n), name="red hat", a_name="a red hat") for n in range(1_000)]
    typed = [question for question in asked if question[-1] not in "?."]
    assert 20 < len(typed) < 120
    assert all(question[0].islower() for question in typed)


def test_sizes_come_from_every_grid_and_fit_it() -> None:
    rng, grids = random.Random(2), set[tuple[int, int]]()
    for _ in range(800):
        size = choose_size(rng)
        assert min(size) >= LEAST_PX
        assert max(size) <= MOST_PX
        width, height = canvas_of(size)
        grids.add((width // 168, height // 168))
        assert scale_of(size) == pytest.approx(min(width / size[0], height / size[1]), rel=0.02)
    assert grids == set(GRIDS)


def test_signs_are_put_between_letters_that_stay_in_order() -> None:
    rng, seen = random.Random(6), ""
    for text, language in (
        ("the old mill, and the river", "en"),
        ("天地玄黄，宇宙洪荒", "zh"),
        ("word", "en"),
        ("天", "zh"),
    ):
        for _ in range(300):
            signed = with_signs(rng, text, language)
            seen += signed
            rest = iter(signed)
            assert all(letter in rest for letter in re.findall(r"[^\W\d_]", text)), signed
            assert signed == signed.strip()
    assert set('!?&$€£:;#@%()"-/+=！？、。：；“”《》（）¥') <= set(seen)


def test_lines_have_signs_and_several_are_asked_about_as_one_is(inputs: str) -> None:
    made = list(records(Lines(inputs=inputs, languages=("en",), tasks=("lines",)), 150))
    texts = [turns(record)[0][1] for record in made]
    assert sum("?" in text or "!" in text for text in texts) > 30, "the passages of the test have neither"
    as_one = {phrase("read", "en", random.Random(n)) for n in range(5_000)}
    plain = [text for record, text in zip(made, texts, strict=True) if turns(record)[0][0] in as_one]
    assert 30 < len(plain) < 90
    assert all(text.count("\n") >= 1 for text in plain)


def test_chinese_lines_have_characters_that_encyclopedias_lack(inputs: str) -> None:
    source, rng = Lines(inputs=inputs), random.Random(7)
    shown = Counter("".join(source.text(rng, "zh", 1, 18) for _ in range(8_000)))
    assert shown["天"] > 4_000, "it is in the frequent words of the inputs"
    usual = [char for char in shown if "一" <= char <= "鿿"]
    assert len(usual) > 2_000, "the passage of the test has sixteen characters"
    assert {"谁", "您", "喝"} <= set(usual)


def test_what_no_picture_tells_is_asked_in_many_ways() -> None:
    for language in ("en", "zh"):
        asked = {phrase("unanswerable", language, random.Random(n)) for n in range(400)}
        assert len(asked) > 100
        assert not any("{" in question for question in asked)


def test_shapes_of_one_scene_are_drawn_in_one_look_or_in_several() -> None:
    def is_empty(composed: Composed, box: tuple[float, float, float, float]) -> bool:
        at = (round((box[0] + box[2]) / 2), round((box[1] + box[3]) / 2))
        return composed.image.getpixel(at) == composed.backdrop.getpixel(at)

    square = next(kind for kind in built_in_kinds() if kind.en == "square" and kind.color == "red")
    outlined = Counter[str]()
    for seed in range(80):
        composed = compose([square] * 6, (400, 300), random.Random(seed))
        empty = [is_empty(composed, thing.box) for thing in composed.placed]
        outlined["all" if all(empty) else "some" if any(empty) else "none"] += 1
    assert min(outlined[key] for key in ("all", "some", "none")) > 3


def test_a_square_is_turned_a_little_and_never_on_its_corner() -> None:
    red_square = next(kind for kind in built_in_kinds() if kind.en == "square" and kind.color == "red")

    def filled(seed: int) -> float:
        """Return the part of its box that a turned square covers: all of it upright, half of it on its corner."""
        sprite = draw_thing(red_square, 60, random.Random(seed), look="filled", is_varied=False, is_turned=True)
        alpha = sprite.getchannel("A").point(lambda value: 255 * (value > 127))
        return alpha.histogram()[255] / (sprite.width * sprite.height)

    squares = [filled(seed) for seed in range(60)]
    assert min(squares) > 0.57
    assert max(squares) > 0.85


def test_flat_shapes_differ_in_form_and_keep_their_color() -> None:
    flat = {"circle", "square", "triangle", "diamond", "pentagon", "star", "heart", "cross", "arrow", "moon"}
    assert set(FORMS) == flat
    for name in FORMS:
        drawn = [draw_form(name, (0, 0, 0), 60, "filled", random.Random(seed)) for seed in range(6)]
        assert len({image.tobytes() for image in drawn}) > 1, name
        for image in drawn:
            left, top, right, bottom = image.getchannel("A").getbbox() or (0, 0, 0, 0)
            assert max(right - left, bottom - top) > 48, f"{name} fills its square"
    for name, (_, color) in COLORS.items():
        for seed in range(50):
            other = shade(color, random.Random(seed))
            nearest = min(COLORS, key=lambda key: sum((a - b) ** 2 for a, b in zip(COLORS[key][1], other, strict=True)))
            assert nearest == name, (name, other)


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_shows_the_color_of_the_shape(look: Look) -> None:
    color = COLORS["blue"][1]
    for seed in range(10):
        image = draw_form("star", color, 80, look, random.Random(seed))
        solid = [pixel for pixel in image.get_flattened_data() if pixel[3] == 255]
        assert sum(pixel[:3] == color for pixel in solid) > (0.02 if look == "graded" else 0.15) * len(solid)


def test_a_bold_face_is_of_the_same_family(inputs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("Serif Regular", "Sans Bold", "Serif Bold", "Mono Regular")
    serif, _, bold, mono = faces = tuple(fonts.Face("", n, name) for n, name in enumerate(names))
    source = Tables(inputs=inputs)
    with monkeypatch.context() as patch:
        patch.setattr(fonts, "find_faces", lambda folders: faces)
        assert source.bold(serif, "abc") == bold
        assert source.bold(mono, "abc") == mono
        assert source.bold(serif, "天") == serif, "PIL's own font has no Chinese"


def test_the_total_of_a_receipt_is_the_sum_of_its_prices_and_taxes(inputs: str) -> None:
    added = 0
    for record in records(Receipts(inputs=inputs, tasks=("read",), turns=1, languages=("en",)), 60):
        lines = turns(record)[0][1].split("\n")
        amounts = {line.rsplit(" ", 1)[0].casefold(): round(100 * float(line.rsplit(" ", 1)[1].lstrip("$€RM")))
                   for line in lines if re.search(r"\d\.\d\d$", line)}  # fmt: skip
        sums = {"subtotal", "sub total", "net", "items"}
        rest = ("total", "amount", "cash", "card", "paid", "change")
        goods = sum(v for k, v in amounts.items() if k not in sums and not k.startswith(rest) and "total" not in k)
        (total,) = {v for k, v in amounts.items() if ("total" in k or k.startswith("amount")) and k not in sums}
        assert goods == total
        added += len(amounts) > 3
    assert added > 10


def test_what_is_not_there_often_has_a_form_and_a_color_that_are(inputs: str) -> None:
    source, rng = Scenes(inputs=inputs), random.Random(9)
    absent = crossed = 0
    while absent < 200:
        composed, draft = compose(source._wanted(rng), choose_size(rng), rng), Draft(language="en")
        _Asker(draft, composed, source.pool(), rng).presences()
        shown = composed.kinds()
        for message in draft.messages:
            if message.parts[0].text != "No.":
                continue
            (missing,) = (draft.objects[number] for number in message.evidence)
            assert missing.label not in {kind.full_name("en") for kind in shown}
            absent += 1
            crossed += missing.label in {f"{a.color} {b.en}" for a in shown for b in shown}
    assert crossed > 0.15 * absent  # without crossed scenes and questions: one in twenty


def test_counts_and_boxes_of_a_scene_agree(inputs: str) -> None:
    counted = set[int]()
    for record in records(Scenes(inputs=inputs, languages=("en",), tasks=("count",)), 80):
        for question, message in zip(turns(record), record.messages[1::2], strict=True):
            (shown,) = [record.objects[index] for index in message.evidence]
            assert question[1] == str(len(shown.boxes_px))
            counted.add(len(shown.boxes_px))
    assert set(range(10)) <= counted, "up to nine of a kind are counted"


def test_places_are_boxes_of_what_is_asked_for(inputs: str) -> None:
    for record in records(Places(inputs=inputs, languages=("en",))):
        assert record.category == "grounding"
        for question, answer in turns(record):
            name = re.search(r"<\|ref\|>(.+?)<\|/ref\|>", question)
            assert name is not None
            if placed := PLACEHOLDER.findall(answer):
                assert [record.objects[int(k)].label for k in placed] == [name[1]]
            else:
                assert name[1] in answer


ITEMS = [
    Item("square", "blue", 0, (0, 0, 1, 1)), Item("square", "blue", 0, (2, 0, 3, 1)),
    Item("circle", "yellow", 1, (0, 0, 1, 1)), Item("triangle", "black", 2, (0, 0, 1, 1)),
]  # fmt: skip
KNOWN = {
    "There are exactly two blue squares.": True,
    "There are exactly 2 squares.": True,
    "There is at least one circle.": True,
    "There are no yellow squares.": True,
    "There is a black circle.": False,
    "Every box has a square.": False,
    "Exactly one box has a circle.": True,
    "There are more squares than circles.": True,
    "There are more circles than squares.": False,
    "All circles are yellow.": True,
    "All items are blue.": False,
    "There is a box with exactly two items.": True,
    "There is a box with exactly three items.": False,
    "There is a box with a square and a circle.": False,
}


def test_statements_hold_or_not_as_they_say() -> None:
    rng, seen = random.Random(5), set[str]()
    for number in range(4000):
        sentence, is_true, _ = make_statement(rng, ITEMS, is_true=number % 2 == 0)
        assert is_true == (number % 2 == 0)
        if sentence in KNOWN:
            seen.add(sentence)
            assert KNOWN[sentence] == is_true, sentence
    assert len(seen) >= len(KNOWN) - 2


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "white").save(buffer, "PNG")
    return buffer.getvalue()


def test_kept_back_groups_and_shops_are_never_shown(inputs: str) -> None:
    scenes, receipts = Path(inputs) / "sets/nlvr", Path(inputs) / "sets/sroie"
    for folder in (scenes, receipts):
        folder.mkdir(parents=True, exist_ok=True)
    block = {"shape": "square", "color": "blue", "x0": 5, "y0": 5, "x1": 15, "y1": 15}
    rows = [{"id": f"{n}", "group": n, "image": png((400, 100)), "sentence": f"There are {n} things.", "label": True,
             "objects": [block]} for n in range(60)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), scenes / "dev-00000-of-00001.parquet")
    line = {"x0": 20.0, "y0": 20.0, "x1": 200.0, "y1": 40.0}
    rows = [{"id": f"{n}", "company": f"SHOP {n}", "image": png((300, 400)), "lines": [{"text": f"SHOP {n}", **line}],
             "date": None, "address": None, "total": None} for n in range(60)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), receipts / "train-00000-of-00001.parquet")
    groups = {re.search(r"\d+", turns(r)[0][0])[0] for r in records(RealStatements(inputs=inputs), 400)}  # type: ignore[index]
    kept = {str(n) for n in range(60) if is_test_scene(n)}
    assert kept
    assert groups == {str(n) for n in range(60)} - kept
    shops = {turns(r)[0][1] for r in records(RealReceipts(inputs=inputs, tasks=("read",)), 500)}
    kept = {f"SHOP {n}" for n in range(60) if is_test_shop(f"SHOP {n}")}
    assert kept
    assert shops == {f"SHOP {n}" for n in range(60)} - kept


def test_a_text_cut_out_of_a_receipt_is_asked_for_as_it_is_labeled(tmp_path: Path) -> None:
    folder = tmp_path / "sets/sroie"
    folder.mkdir(parents=True)
    shop = next(f"SHOP {n}" for n in range(60) if not is_test_shop(f"SHOP {n}"))
    boxes = {"X": (40.0, 10.0, 52.0, 30.0), "TOTAL DUE": (20.0, 50.0, 170.0, 70.0), "7.50": (200.0, 51.0, 260.0, 69.0)}
    image = Image.new("RGB", (300, 160), "white")
    for box in boxes.values():
        ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="black")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    lines = [{"text": text, **dict(zip(("x0", "y0", "x1", "y1"), box, strict=True))} for text, box in boxes.items()]
    row = {"id": "1", "image": buffer.getvalue(), "lines": lines, "company": shop, "date": None, "address": None,
           "total": None}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")
    seen = set[str]()
    for record in records(RealReceipts(inputs=str(tmp_path), tasks=("line",)), 60):
        ((question, answer),) = turns(record)
        seen.add(answer)
        x0, y0, x1, y1 = boxes[answer]
        (labeled,) = record.objects
        assert labeled.label == answer
        assert len(labeled.boxes_px) == len(answer)
        left, right = labeled.boxes_px[0][0], labeled.boxes_px[-1][2]
        assert right - left == pytest.approx(x1 - x0)
        picture = Image.open(io.BytesIO(record.images[0].data or b"")).convert("L")
        dark = picture.point(lambda value: 255 * (value < 128)).getbbox()
        assert dark == pytest.approx((left, labeled.boxes_px[0][1], right, labeled.boxes_px[0][3]), abs=1.5)
        assert picture.height <= (y1 - y0) * 1.5 + 2
        # The labels are in capitals whatever the receipt has, so capitals are asked for, but not of a number.
        assert bool(re.search("capital|upper case", question)) == (answer != "7.50"), question
    assert seen == set(boxes)


def test_single_characters_stand_alone_and_large(inputs: str) -> None:
    made = list(records(Lines(inputs=inputs, languages=("en",), tasks=("line",)), 400))
    alone = [record for record in made if len(turns(record)[0][1]) == 1]
    assert len({turns(record)[0][1] for record in alone}) >= 4
    heights = [record.objects[0].boxes_px[0] for record in made if len(turns(record)[0][1]) <= 3]
    sizes = [(record.images[0].width, record.images[0].height) for record in made if len(turns(record)[0][1]) <= 3]
    seen = [(box[3] - box[1]) * scale_of(size) for box, size in zip(heights, sizes, strict=True)]
    assert max(seen) > 76


def test_whole_receipts_are_asked_for_all_that_they_say(tmp_path: Path) -> None:
    folder = tmp_path / "sets/sroie"
    folder.mkdir(parents=True)
    shop = next(f"SHOP {n}" for n in range(60) if not is_test_shop(f"SHOP {n}"))
    texts = (shop, "12/05/2018", "SUBTOTAL", "7.50", "TOTAL", "7.50", "THANK YOU")
    lines = [
        {"text": text, "x0": 20.0 + 150 * (n in (3, 5)), "y0": y, "x1": 140.0 + 150 * (n in (3, 5)), "y1": y + 18}
        for n, (text, y) in enumerate(zip(texts, (10.0, 40.0, 70.0, 70.0, 100.0, 100.0, 130.0), strict=True))
    ]
    row = {"id": "1", "image": png((300, 160)), "lines": lines, "company": shop, "date": "12/05/2018", "address": None,
           "total": "7.50"}  # fmt: skip
    pq.write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")
    for record in records(RealReceipts(inputs=str(tmp_path), tasks=("whole",)), 10):
        assert (record.images[0].width, record.images[0].height) == (300, 160)
        assert sorted(answer for _, answer in turns(record)) == sorted((shop, "12/05/2018", "7.50"))
        (total,) = [record.objects[m.evidence[0]] for m in record.messages[1::2] if m.parts[0].text == "7.50"]
        assert {box[1] for box in total.boxes_px} == {100.0}, "the line that says TOTAL"
