"""The primer: small pictures, several questions about each, every answer what is drawn."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from vl2.data.record import PLACEHOLDER, Record
from vl2.errors import UserError
from vl2.synth.primer_charts import PrimerBars, PrimerTable
from vl2.synth.primer_lines import LEAST_PX, PrimerReading, choose_face, fit, phrase
from vl2.synth.primer_scene import PrimerScene
from vl2.synth.source import Dropped, Source, generate
from vl2.synth.words import read_characters, read_passages

SOURCES: list[Source] = [PrimerReading(languages=("en",)), PrimerScene(), PrimerBars(), PrimerTable()]

pytestmark = pytest.mark.usefixtures("no_system_fonts")


def records(source: Source, count: int = 60) -> list[Record]:
    return list(generate(source, count, seed=5))


def check_small(made: list[Record]) -> None:
    """Assert that the pictures are small, and that no question is asked twice of one."""
    assert len(made) >= 20
    for record in made:
        (image,) = record.images
        # A distortion may turn a page and so widen it by a few pixels.
        assert max(image.width, image.height) <= 400
        questions = [m.parts[-1].text for m in record.messages if m.role == "user"]
        assert len(set(questions)) == len(questions)
        assert len(questions) == len(record.messages) // 2
    assert max(len(record.messages) for record in made) > 2


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_pictures_are_small_and_questions_differ(source: Source) -> None:
    check_small(records(source))


def test_a_line_is_asked_for_and_answered_whole() -> None:
    for record in records(PrimerReading(tasks=("line",))):
        answer = record.messages[1].parts[0].text or ""
        assert answer
        assert "\n" not in answer
        assert record.images[0].height < record.images[0].width or len(answer) < 4


def test_lines_can_be_long_alone() -> None:
    made = records(PrimerReading(tasks=("line",), languages=("en",), line_widths=(150,), min_chars_en=11))
    assert made
    for record in made:
        answer = record.messages[1].parts[0].text or ""
        assert 11 <= len(answer) <= 24
        assert record.images[0].width <= 168, "one tile, askew too"
    with pytest.raises(UserError, match="min_chars_en must be at most max_chars_en, 24, got 25"):
        PrimerReading(min_chars_en=25)


def test_rare_characters_are_written_as_often_as_frequent_ones(tmp_path: Path) -> None:
    texts = tmp_path / "zh.txt"
    texts.write_text("的的的的的的的的的的的的的的的的的的的的山山山山水水水水火\n", encoding="utf-8")
    source = PrimerReading(tasks=("line",), languages=("zh",), texts_zh=str(texts), even_share=1.0)
    rng = random.Random(5)
    written = Counter("".join(source._text(rng, "zh", limit=10) for _ in range(80)))
    assert set(written) == set("的山水"), "火 is there once, and may be a slip"
    assert max(written.values()) < 1.5 * min(written.values())
    with pytest.raises(UserError, match="even_share needs texts_zh"):
        PrimerReading(even_share=0.5)
    with pytest.raises(UserError, match="even_share must be from 0 to 1, got 2"):
        PrimerReading(texts_zh=str(texts), even_share=2)
    texts.write_text("no Chinese here\n", encoding="utf-8")
    read_passages.cache_clear()
    read_characters.cache_clear()
    with pytest.raises(UserError, match="has no Chinese character 4 times or more"):
        source._text(rng, "zh", limit=10)


def test_several_lines_are_read_in_order_and_by_number() -> None:
    asked_by_number = 0
    for record in records(PrimerReading(tasks=("lines",)), 120):
        lines = (record.messages[1].parts[0].text or "").split("\n")
        assert 2 <= len(lines) <= 5
        for question, answer in zip(record.messages[2::2], record.messages[3::2], strict=True):
            number = re.search(r"[Ll]ine (\d)|第(\d)行", question.parts[-1].text or "")
            if number and "<|ref|>" not in (question.parts[-1].text or ""):
                asked_by_number += 1
                assert answer.parts[0].text == lines[int(number[1] or number[2]) - 1]
    assert asked_by_number > 5


def test_the_boxes_of_a_conversation_belong_to_their_questions() -> None:
    located = 0
    for record in records(PrimerScene(tasks=("ground", "detect")), 80):
        for question, answer in zip(record.messages[::2], record.messages[1::2], strict=True):
            label = re.search(r"<\|ref\|>(.*)<\|/ref\|>", question.parts[-1].text or "")
            numbers = [int(n) for n in re.findall(r"\{box:(\d+)\}", answer.parts[0].text or "")]
            assert numbers
            if label:
                located += 1
                assert record.objects[numbers[0]].label == label[1]
    assert located > 20


def test_of_every_kind_in_a_scene_the_place_and_the_number_are_asked_once() -> None:
    absent, first = 0, Counter[str]()
    for record in records(PrimerScene(languages=("en",), of_every_kind=True), 90):
        pairs = [
            (question.parts[-1].text or "", answer.parts[0].text or "")
            for question, answer in zip(record.messages[::2], record.messages[1::2], strict=True)
        ]
        asked = [label[1] for question, _ in pairs if (label := re.search(r"<\|ref\|>(.*)<\|/ref\|>", question))]
        placed = [record.objects[int(k)] for _, answer in pairs for k in PLACEHOLDER.findall(answer)]
        places = {item.label: len(item.boxes_px) for item in placed}
        counted = [int(answer) for _, answer in pairs if answer.isdigit()]
        assert sorted(asked) == sorted(places)
        # One of the kinds that are counted may not be there.
        assert sorted(counted) in ([], sorted(places.values()), sorted([0, *places.values()]))
        absent += 0 in counted
        # A number or a place must not be answered by a question before it.
        kinds = ["yes_no" if a in ("Yes.", "No.") else "count" if a.isdigit() else "place" for _, a in pairs]
        assert kinds == sorted(kinds, key=["yes_no", "count", "place"].index)
        first[kinds[0]] += 1
    assert 6 < absent < 40
    assert min(first[kind] for kind in ("yes_no", "count", "place")) > 15, "each is asked without the others before it"


def test_the_highest_bar_and_the_values_agree() -> None:
    """The same chart is asked for its values and its extremes: the answers must fit each other."""
    compared = 0
    for record in records(PrimerBars(languages=("en",), turns=12), 150):
        values, highest = {}, None
        for question, answer in zip(record.messages[::2], record.messages[1::2], strict=True):
            text, said = question.parts[-1].text or "", answer.parts[0].text or ""
            name = re.search(r" for (.+)\?$", text)
            if name:
                values[name[1]] = float(said)
            elif "highest" in text or "largest" in text:
                highest = said
        if highest in values:
            compared += 1
            assert values[highest] == max(values.values())
    assert compared > 10


def test_text_is_made_smaller_to_fit_and_dropped_where_it_would_not_be_readable() -> None:
    rng = random.Random(0)
    face = choose_face(rng, "abc", None)
    assert fit(face, "a word", 40, 90).getlength("a word") <= 90
    assert fit(face, "a word", 40, 90).size >= LEAST_PX
    with pytest.raises(Dropped, match="too long"):
        fit(face, "a very long line of text", 40, 60)


def test_phrases_keep_to_their_limit() -> None:
    rng = random.Random(1)
    for language, limit in (("en", 12), ("zh", 5)):
        for _ in range(200):
            piece = phrase(rng, language, None, limit)
            assert 1 <= len(piece) <= limit
