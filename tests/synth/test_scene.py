"""Scenes: boxes are the pixels, counts and answers are what lies there; sprites from files; marks and two images."""

from __future__ import annotations

import io
import random
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.synth.pill_set import write_set
from vl2.errors import UserError
from vl2.synth.draft import Draft
from vl2.synth.emoji import SHEET_CELL_PX, Emoji
from vl2.synth.nouns import article, plural
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.scene import TASKS, Scene
from vl2.synth.scene_words import named
from vl2.synth.source import generate, rng_for
from vl2.synth.sprites import Kind, built_in_kinds, draw_sprite, read_kinds, things
from vl2.synth.visual_prompt import MARKS, InContext, Mark, VisualPrompt, draw_mark, mark


def changed_pixels(before: Image.Image, after: Image.Image) -> np.ndarray:
    return (np.asarray(before) != np.asarray(after)).any(axis=2)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_exactly_where_the_pixels_changed(seed: int) -> None:
    composed = Scene().compose(random.Random(seed))
    changed = changed_pixels(composed.backdrop, composed.image)
    covered = np.zeros_like(changed)
    assert composed.placed
    for placed in composed.placed:
        x0, y0, x1, y1 = (int(v) for v in placed.box)
        inside = changed[y0:y1, x0:x1]
        covered[y0:y1, x0:x1] = True
        # Every edge of the box touches the thing: no smaller box would do.
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()
    assert not (changed & ~covered).any()


def test_every_answer_about_a_scene_holds() -> None:
    source = Scene(tasks=("count", "presence", "ground", "negative", "detect"))
    seen = set()
    for index in range(120):
        rng = rng_for(0, "scene", index)
        language, task = rng.choice(source.languages), source.pick_task(rng)
        composed = source.compose(rng)
        record = source.make(index, 0)
        question, answer = (m.parts[-1].text or "" for m in record.messages[:2])
        names = {name for p in composed.placed for name in (p.kind.name(language), p.kind.full_name(language))}
        if task == "count":
            named = {plural(n) if language == "en" else n for n in names}
            # The longest name in the question is the one asked for.
            asked = max((n for n in named if n in question), key=len, default=None)
            kinds = [p.kind for p in composed.placed]
            spoken = [(k.name(language), k.full_name(language)) for k in kinds]
            truth = sum(asked in (*pair, *(plural(name) for name in pair)) for pair in spoken)
            assert int(answer) in (truth, 0), (question, answer)
        elif task == "presence":
            label = re.sub(r"^(Is there|Does the picture show|Can you see) an? | in the image|\?$", "", question)
            label = re.sub(r"图中有|图片里有没有|画面上有|吗？|？", "", label)
            assert (answer in ("Yes.", "有。")) == (label in names), (question, answer)
        elif task == "negative" and not record.objects:
            label = re.search(r"<\|ref\|>(.*)<\|/ref\|>", question)
            assert label is not None
            assert label[1] not in names
        else:
            for labeled in record.objects:
                assert list(labeled.boxes_px) == composed.boxes(language, labeled.label)
        seen.add((task, language))
    assert len(seen) == 10


def test_plurals() -> None:
    pairs = {"car": "cars", "red box": "red boxes", "cherry": "cherries", "toy": "toys", "fish": "fish",
             "slice of bread": "slices of bread", "woman": "women", "bridge at night": "bridges at night",
             "nut and bolt": "nuts and bolts", "nest with eggs": "nests with eggs", "water buffalo": "water buffaloes",
             "clinking glasses": "clinking glasses", "cooked rice": "cooked rice"}  # fmt: skip
    assert {noun: plural(noun) for noun in pairs} == pairs


def test_what_is_not_counted_takes_no_article_and_is_no_thing_of_a_scene() -> None:
    nouns = ("spaghetti", "bowl with spoon", "jeans")
    assert [article(noun) for noun in nouns] == ["spaghetti", "a bowl with spoon", "jeans"]
    names = ("cup", "spoon", "fork", "spaghetti", "badminton", "locked")
    kinds = tuple(Kind(en=name, zh="-", art=f"{name}.svg") for name in names)
    assert [kind.en for kind in things(kinds)] == ["cup", "spoon", "fork"]


def test_every_built_in_shape_is_a_thing_of_a_scene() -> None:
    assert things(built_in_kinds()) == built_in_kinds()


def test_grounded_captions_count_and_box_the_same_things() -> None:
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4, "five": 5, "六": 6, "一": 1, "两": 2, "三": 3, "四": 4}
    for record in generate(Scene(tasks=("grounded_caption",)), 40):
        answer = record.messages[1].parts[0].text or ""
        assert (record.messages[0].parts[-1].text or "").startswith("<|grounding|>")
        for number, place in re.findall(
            r"(\w)\w?\{box:(\d+)\}" if record.language == "zh" else r"(\w+) \{box:(\d+)\}", answer
        ):
            if number in numbers:
                assert len(record.objects[int(place)].boxes_px) == numbers[number], answer


def test_sprites_come_from_a_set_with_names(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    source = Scene(art=str(folder), tasks=("detect",))
    records = list(generate(source, 20))
    assert {o.label for record in records for o in record.objects} == {
        name for kind in source.kinds() for name in (kind.en, kind.zh)
    }
    assert {record.licence for record in records} == {"MIT"}
    sprite = draw_sprite(Kind(en="red pill", zh="", art=str(folder / "s0.png")), 80)
    assert sprite.width == 80
    assert 36 <= sprite.height <= 44


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sprites": [{"file": "s0.png", "en": "a", "zh": "b"}]}, "has 1 sprites, at least 3 are needed"),
        (
            {"sprites": [{"file": "../s0.png", "en": "a", "zh": "b"}]},
            "sprite 0: file must be an SVG or PNG file in the",
        ),
        ({"sprites": [{"file": "s0.png", "en": "a"}]}, "sprite 0 must be {"),
        ({"sprites": [{"file": "s0.png", "en": "a", "zh": " "}]}, "needs a name in English and in Chinese"),
        (
            {"sprites": [{"file": f"{n}.svg", "en": n, "zh": n} for n in "abc"]},
            "3 pictures of .* are missing, such as c",
        ),
        ({"sprites": "s0.png"}, "must hold an object with name, licence and a list of sprites"),
    ],
)
def test_a_damaged_sprite_set_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_kinds(str(write_set(tmp_path, **changes)))


def test_emoji_are_named_in_order(tmp_path: Path) -> None:
    source = Emoji(art=str(write_set(tmp_path)), languages=("en",))
    kinds = {kind.en for kind in source.kinds()}
    for record in generate(source, 40):
        question, answer, *_ = (m.parts[-1].text or "" for m in record.messages)
        asked = [name for name in kinds if name in question]
        if record.category == "caption":
            assert sum(name in answer for name in kinds) >= 1
        elif answer == "Yes.":
            assert len(asked) == 1
        elif answer.startswith("No, it is a "):
            assert answer[len("No, it is a ") : -1] in kinds - set(asked)
        else:
            assert answer in kinds
            assert not asked or answer in asked
    assert {record.licence for record in generate(source, 1)} == {"MIT"}
    with pytest.raises(UserError, match="is not a sprite set"):
        list(generate(Emoji(art=str(tmp_path / "none")), 1))


@pytest.mark.parametrize("task", ["name_shown", "list_shown"])
def test_what_is_shown_is_named_once_for_a_second_language_would_be_translated(task: str, tmp_path: Path) -> None:
    source = Emoji(art=str(write_set(tmp_path)), tasks=(task,))
    names = {language: [kind.full_name(language) for kind in source.kinds()] for language in ("en", "zh")}
    languages = set()
    for record in generate(source, 12):
        said = record.messages[1].parts[-1].text or ""
        assert record.category == "caption"
        assert len(record.images) == 1
        assert len(record.messages) == 2
        assert set(re.split(r"\n|、", said.rstrip("。"))) <= set(names[record.language]), "bare names"
        languages.add(record.language)
    assert languages == {"en", "zh"}


def test_a_sheet_is_named_in_reading_order(tmp_path: Path) -> None:
    source = Emoji(art=str(write_set(tmp_path)), tasks=("list_shown",), restyled_share=0.5)
    for record in generate(source, 8):
        image, message = record.images[0], record.messages[1]
        said = message.parts[-1].text or ""
        things = [record.objects[number] for number in message.evidence]
        assert [thing.label for thing in things] == re.split(r"\n|、", said.rstrip("。"))
        boxes = [thing.boxes_px[0] for thing in things]
        assert all(set(thing.boxes_px) == {box} for thing, box in zip(things, boxes, strict=True))
        assert all(0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height for x0, y0, x1, y1 in boxes)
        assert all(right[0] >= left[2] or right[1] >= left[3] for left, right in pairwise(boxes))
        assert max(box[3] for box in boxes) > image.height - SHEET_CELL_PX[1], "no row is empty, of a small set either"


def test_names_take_the_article_and_the_number_that_they_have() -> None:
    names = ("umbrella", "unicorn", "hourglass", "UFO", "owl", "bus", "grapes", "flag of Peru")
    said = "an umbrella, a unicorn, an hourglass, a UFO, an owl, a bus, grapes, the flag of Peru"
    assert ", ".join(map(article, names)) == said
    assert named("This is {a_name}.", "grapes") == "These are grapes."
    assert named("It is {a_name}.", "octopus") == "It is an octopus."


@pytest.mark.parametrize("shape", MARKS)
def test_a_mark_is_drawn_at_its_object(shape: str) -> None:
    blank = Image.new("RGB", (300, 200), (255, 255, 255))
    marked = blank.copy()
    draw_mark(marked, Mark(shape=shape, color="red", label="x", box=(100, 60, 160, 110)), random.Random(0))
    rows, columns = changed_pixels(blank, marked).nonzero()
    assert len(rows) > 50
    if shape == "arrow":
        assert changed_pixels(blank, marked)[60:110, 100:160].any()
    else:
        assert abs(columns.mean() - 130) < 8
        assert abs(rows.mean() - 85) < 8
    if shape in ("box", "circle"):
        assert not changed_pixels(blank, marked)[60:110, 100:160].any()


def test_the_marked_object_is_the_answer() -> None:
    for record in generate(VisualPrompt(), 20):
        assert record.category == "visual_prompt"
        assert len(record.images) == 1
    # A source of real pictures can be marked in the same way.
    base = Scene(tasks=("ground",), languages=("en",))
    for record in generate(VisualPrompt(base=base, tasks=("box",)), 10):
        assert (record.messages[1].parts[0].text or "").startswith(("A ", "An "))


def test_in_context_asks_about_the_second_image_in_the_released_words() -> None:
    questions = set()
    for record in generate(InContext(), 30):
        assert [o.image for o in record.objects] == [1]
        assert [part.image for part in record.messages[0].parts[:2]] == [0, 1]
        questions.add(record.messages[0].parts[2].text)
        Image.open(io.BytesIO(record.images[1].data or b"")).load()
    released = (
        r"<\|grounding\|>In the first image, an object within the \w+ (rectangle|ellipse) is marked. Locate the object"
    )
    assert any(re.match(released, question or "") for question in questions)


def test_only_one_thing_fits_a_question_about_an_attribute() -> None:
    asked = {"colour": 0, "name": 0}
    for number in range(120):
        rng = random.Random(number)
        source = PrimerScene(languages=("en",), tasks=("attribute",))
        composed = source.compose(rng)
        draft = Draft(language="en")
        TASKS["attribute"](draft, composed, things(source.kinds()), rng)
        question, answer = (message.parts[-1].text or "" for message in draft.messages)
        if (
            about := re.match(r"(?:What colour is the|Which colour does the) (\w+?)(?: have)?\?", question)
        ) is not None:
            asked["colour"] += 1
            assert [kind.color for kind in composed.kinds() if kind.en == about[1]] == [answer]
        elif (about := re.match(r"(?:What|Which thing) is (\w+)\?", question)) is not None:
            asked["name"] += 1
            assert [kind.en for kind in composed.kinds() if kind.color == about[1]] == [answer]
    assert min(asked.values()) > 20


def test_what_a_mark_marks_keeps_its_capitals() -> None:
    draft = Draft(language="en")
    draft.picture(Image.new("RGB", (200, 150), "white"))
    draft.ask("Where?", draft.box("UFO of Mars", [(20, 20, 90, 90)]))
    record = draft.record(id="x", source="made", category="grounding", licence="CC0-1.0")
    marked = mark(record, "box", random.Random(0))
    assert marked.messages[1].parts[0].text == f"{article('UFO of Mars')}.".replace("a", "A", 1)


def test_the_tenth_picture_is_asked_for_in_chinese_too() -> None:
    records = list(generate(Emoji(languages=("zh",), tasks=("nth",), max_pictures=30), 40))
    asked = [record.messages[0].parts[-1].text or "" for record in records]
    assert any(re.search(r"第1\d个", text) for text in asked)
    assert any(re.search(r"第[一二三四五六七八九]个", text) for text in asked)
