"""Each job: what its prompt holds, what it makes of an answer, and which answers it does not take."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import ExifTags, Image

from tests.curate.filters.examples import encoded, record, scene
from vl2.curate.jobs.client import SentImage
from vl2.curate.jobs.job_kinds import (
    ANSWER_STYLE,
    ANSWER_STYLE_OF_CATEGORY,
    INSTRUCTIONS,
    DraftQa,
    Recaption,
    RegenerateAnswer,
    ScoreWriting,
    TranslateQuery,
    answer_style,
    instruction_for,
)
from vl2.curate.jobs.job_protocol import Unreadable, Unsuitable, clean_answer, numbered_parts
from vl2.curate.jobs.material import MAX_SIDE_PX, Material, camera_data, sent_image
from vl2.curate.jobs.ocr import Line
from vl2.curate.record_texts import texts_of
from vl2.data.record import Labeled, Message, Part, Record
from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER, TABLE_TO_HTML, TRANSCRIBE
from vl2.datasets.reading_sets import FORMULA_TO_LATEX
from vl2.errors import UserError

LINES = (
    Line(text="TOTAL 42.50", box_px=(1, 2, 30, 9), score=0.99),
    Line(text="l1l|", box_px=(1, 12, 30, 19), score=0.2),
)
MATERIAL = Material(images=(SentImage(digest="d", url="data:u"),), ocr=(LINES,), camera=(("FNumber: 2.8",),))
PHOTO = record("p-1", scene(0), question="Describe.", answer="An old caption.", category="caption")


def test_a_caption_is_asked_for_with_everything_known_about_the_image() -> None:
    job = Recaption(meta={"p-1": {"location": "Lisbon"}}, language="zh")
    request = job.ask(PHOTO, MATERIAL)
    for part in ("TOTAL 42.50", "FNumber: 2.8", "location: Lisbon", "An old caption.", "Write in simplified Chinese."):
        assert part in request.text
    assert "l1l|" not in request.text  # the engine was not sure
    assert request.images == MATERIAL.images
    made = job.read(PHOTO, MATERIAL, "  A new caption. ").record
    assert texts_of(made, "assistant") == ["A new caption."]
    assert (made.id, made.images, texts_of(made, "user")) == (PHOTO.id, PHOTO.images, ["Describe."])
    assert made.language == "zh"
    bare = Recaption().ask(PHOTO, Material(images=MATERIAL.images)).text
    assert "OCR" not in bare
    assert "Meta information" not in bare
    assert "Write in English." in bare
    with pytest.raises(UserError, match="language must be one of en, zh"):
        Recaption(language="Klingon")


def test_instructions_vary_with_the_record_and_stay_with_it() -> None:
    chosen = [instruction_for(f"r-{number}") for number in range(200)]
    assert set(chosen) == set(INSTRUCTIONS)
    assert chosen == [instruction_for(f"r-{number}") for number in range(200)]


@pytest.mark.parametrize(
    "question",
    [
        "Extract all fields as JSON.",
        "用JSON提取这张表的内容。",
        f"What is the total?\n{SHORT_ANSWER}",
        f"Which one?\nA. 1\nB. 2\n{OPTION_LETTER}",
        *TABLE_TO_HTML[:2],
        *FORMULA_TO_LATEX,
        "Is it red? Answer yes or no.",
        "这是什么？用一个词回答。",
    ],
)
def test_a_question_that_names_the_form_of_its_answer_keeps_it(question: str) -> None:
    asked = record("o", scene(0), question=question, answer="{}", category="ocr")
    text = RegenerateAnswer().ask(asked, MATERIAL).text
    assert question in text
    assert "The question names the form of the answer" in text
    assert not any(style in text for style in (*ANSWER_STYLE_OF_CATEGORY.values(), ANSWER_STYLE))


@pytest.mark.parametrize("question", [*TRANSCRIBE, "What does the sign say?", "图中写了什么？"])
def test_other_questions_get_the_style_of_their_category(question: str) -> None:
    asked = record("o", scene(0), question=question, answer="x", category="ocr")
    text = RegenerateAnswer().ask(asked, MATERIAL).text
    assert ANSWER_STYLE_OF_CATEGORY["ocr"] in text
    assert "the form of the answer" not in text


def test_a_conversation_of_both_kinds_says_which_question_is_which() -> None:
    style = answer_style(
        "ocr", ["Read the text.", "Give the fields as JSON.", "And the date?", "Yes or no: is it paid?"]
    )
    assert style.startswith("Questions 2, 4 name the form of the answer")
    assert style.endswith(f"The other questions: {ANSWER_STYLE_OF_CATEGORY['ocr']}")


def test_records_without_an_image_or_with_boxes_are_not_captioned() -> None:
    boxed = replace(
        record("g", scene(0), answer="{box:0}"), objects=(Labeled(image=0, label="x", boxes_px=((0, 0, 9, 9),)),)
    )
    for each, why in ((record("t"), "no image"), (boxed, "contain boxes")):
        with pytest.raises(Unsuitable, match=why):
            Recaption().ask(each, MATERIAL)
    with pytest.raises(Unsuitable, match="contain boxes"):
        RegenerateAnswer().ask(boxed, MATERIAL)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ("", Unreadable),
        ("I'm sorry, I can't help with that.", Unsuitable),
        ("抱歉，我无法", Unsuitable),
        ("A <|ref|>cat<|/ref|>", Unreadable),
        ("A cat<｜end▁of▁sentence｜>", Unreadable),
        ("<image> a cat", Unreadable),
        ("A cat at {box:0}", Unreadable),
    ],
)
def test_refusals_and_tokens_of_the_chat_format_never_become_training_text(answer: str, error: type) -> None:
    with pytest.raises(error):
        clean_answer(answer)


def test_writing_is_scored_from_the_text_alone() -> None:
    job = ScoreWriting(threshold=6)
    request = job.ask(PHOTO, MATERIAL)
    assert "An old caption." in request.text
    assert request.images == ()
    assert request.key("m") == ScoreWriting(threshold=9).ask(PHOTO, MATERIAL).key("m")
    made = job.read(PHOTO, MATERIAL, " 10\n")
    assert (made.record, made.note) == (PHOTO, "its writing scores 10")
    with pytest.raises(Unsuitable, match="scores 5, below 6"):
        job.read(PHOTO, MATERIAL, "5")
    for garbage in ("0", "11", "7/10", "Score: 7", "7.5", "", "seven", "-3"):
        with pytest.raises(Unreadable, match="a number from 1 to 10"):
            job.read(PHOTO, MATERIAL, garbage)
    with pytest.raises(UserError, match=r"threshold must be in 1\.\.10"):
        ScoreWriting(threshold=0)


def two_turns(category: str = "vqa") -> Record:
    first = record("q", scene(0), question="How much?", answer="42")
    more = (
        Message(role="user", parts=(Part(text="In which currency?"),)),
        Message(role="assistant", parts=(Part(text="EUR"),)),
    )
    return replace(first, category=category, messages=first.messages + more)


def test_answers_are_made_anew_for_every_turn() -> None:
    request = RegenerateAnswer().ask(two_turns("reasoning"), MATERIAL)
    for part in ("1. How much?\n2. In which currency?", "TOTAL 42.50", ANSWER_STYLE_OF_CATEGORY["reasoning"]):
        assert part in request.text
    assert "EUR" not in request.text  # an old answer
    made = RegenerateAnswer().read(two_turns(), MATERIAL, "=== 1 ===\nIt is\n42.50.\n\n=== 2 ===\nEuros.")
    assert texts_of(made.record, "assistant") == ["It is\n42.50.", "Euros."]
    for answer in ("It is 42", "=== 1 ===\nA", "=== 1 ===\nA\n=== 2 ===\n", "Sure!\n=== 1 ===\nA\n=== 2 ===\nB"):
        with pytest.raises(Unreadable):
            RegenerateAnswer().read(two_turns(), MATERIAL, answer)


def test_numbered_parts_come_in_order() -> None:
    assert numbered_parts("=== 1 ===\na === 2 === b\n===2===\nc", 2) == ["a === 2 === b", "c"]
    with pytest.raises(Unreadable, match="expected parts 1 to 2"):
        numbered_parts("=== 2 ===\na\n=== 1 ===\nb", 2)


def grounding(question: str, answer: str = "{box:0}", **changes: Any) -> Record:
    objects = (Labeled(image=0, label="red mug", boxes_px=((1, 1, 9, 9),)),)
    return replace(record("g-1", scene(0), question=question, answer=answer), objects=objects, **changes)


def test_a_query_is_translated_with_its_tags_its_boxes_and_one_name_for_the_thing() -> None:
    query = grounding("<|grounding|>Locate <|ref|>red mug<|/ref|> in the given image.", "Here: {box:0}.")
    request = TranslateQuery().ask(query, MATERIAL)
    for part in ("=== 1 ===\nred mug", "=== 2 ===\n[[1]]Locate [[2]] in the given image.", "=== 3 ===\nHere: [[1]]."):
        assert part in request.text
    assert "<|" not in request.text
    answer = "=== 1 ===\n红色杯子\n=== 2 ===\n[[1]]在图中找到[[2]]。\n=== 3 ===\n在这里：[[1]]。"
    made = TranslateQuery().read(query, MATERIAL, answer).record
    assert (made.id, made.language, made.objects[0].label) == ("g-1-zh", "zh", "红色杯子")
    assert texts_of(made, "user") == ["<|grounding|>在图中找到<|ref|>红色杯子<|/ref|>。"]
    assert texts_of(made, "assistant") == ["在这里：{box:0}。"]
    assert made.objects[0].boxes_px == query.objects[0].boxes_px
    assert "<|ref|>红色杯子<|/ref|><|det|>" in made.with_boxes("{box:0}")


def test_a_translated_answer_rests_on_the_same_objects() -> None:
    query = grounding("How many?", "Two of them.")
    resting = replace(query, messages=(query.messages[0], replace(query.messages[1], evidence=(0,))))
    answer = "=== 1 ===\n红色杯子\n=== 2 ===\n有几个？\n=== 3 ===\n两个。"
    made = TranslateQuery().read(resting, MATERIAL, answer).record
    assert [message.evidence for message in made.messages] == [(), (0,)]


def test_a_translation_that_loses_a_mark_or_is_not_chinese_is_not_taken() -> None:
    query = grounding("Locate <|ref|>red mug<|/ref|>.")
    for sentence in ("找到它。", "找到[[1]]和[[1]]。", "找到[[2]]。", "Find [[1]].", "找到<|ref|>[[1]]<|/ref|>。"):
        with pytest.raises(Unreadable):
            TranslateQuery().read(query, MATERIAL, f"=== 1 ===\n红色杯子\n=== 2 ===\n{sentence}")
    for other in (grounding("Where?", language="zh"), grounding("Where is [[1]]?")):
        with pytest.raises(Unsuitable):
            TranslateQuery().ask(other, MATERIAL)


def test_a_conversation_is_drafted_from_the_text_of_a_page() -> None:
    job = DraftQa(turns=2, min_characters=5)
    assert "TOTAL 42.50" in job.ask(PHOTO, MATERIAL).text
    answer = "=== 1 ===\nQ: How much?\nA: 42.50\n=== 2 ===\nQ: For what?\nA: The total,\nas printed."
    made = job.read(PHOTO, MATERIAL, answer).record
    assert [message.role for message in made.messages] == ["user", "assistant"] * 2
    assert made.messages[0].parts == (Part(image=0), Part(text="How much?"))
    assert texts_of(made, "assistant") == ["42.50", "The total,\nas printed."]
    with pytest.raises(Unsuitable, match="11 characters of text, below 80"):
        DraftQa().ask(PHOTO, MATERIAL)
    with pytest.raises(Unreadable, match="one line of Q:"):
        DraftQa(turns=1).read(PHOTO, MATERIAL, "=== 1 ===\nHow much? 42.50")


def test_images_are_sent_as_they_are_stored_where_that_works() -> None:
    assert sent_image(encoded(scene(0), "PNG")).url.startswith("data:image/png;base64,")
    assert sent_image(encoded(scene(0), "BMP")).url.startswith("data:image/jpeg;base64,")
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    scene(0).save(file, "PNG", exif=turned)
    assert sent_image(file.getvalue()).url.startswith("data:image/jpeg;base64,")
    huge = sent_image(encoded(Image.new("RGB", (MAX_SIDE_PX + 500, 40))))
    assert huge.url.startswith("data:image/jpeg;base64,")
    with pytest.raises(UserError, match="cannot read image"):
        sent_image(encoded(scene(0))[:-400])


def test_camera_data_are_read_and_broken_ones_are_none() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "Canon\x00"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.8
    place = exif.get_ifd(ExifTags.IFD.GPSInfo)
    place[ExifTags.GPS.GPSLatitudeRef], place[ExifTags.GPS.GPSLatitude] = "N", (38.0, 42.0, 36.0)
    place[ExifTags.GPS.GPSLongitudeRef], place[ExifTags.GPS.GPSLongitude] = "W", (9.0, 8.0, 24.0)
    file = io.BytesIO()
    scene(0).save(file, "JPEG", exif=exif)
    assert camera_data(file.getvalue()) == ("Make: Canon", "FNumber: 2.8", "GPS: 38.71, -9.14")
    assert camera_data(encoded(scene(0))) == camera_data(b"broken") == ()
