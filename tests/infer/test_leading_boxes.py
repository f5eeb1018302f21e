"""Boxes that an answer begins with: left out of its text if words follow, and given as data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vl2
from vl2.errors import UserError
from vl2.infer.answer_stream import AnswerStream
from vl2.infer.sequence import Event
from vl2.infer.vlm import ReplyBuilder
from vl2.process.conversation import user_turn
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.processor import Processor

PLAIN = Processor.from_folder(Path(vl2.__file__).parent / "nano")
PROCESSOR = replace(PLAIN, config=replace(PLAIN.config, hides_leading_boxes=True))
TOKENIZER = PROCESSOR.tokenizer
BOXES = "<|ref|>blue stars<|/ref|><|det|>[[0, 0, 500, 500], [500, 0, 999, 999]]<|/det|>"


def shown(answer: str, *, stop: tuple[str, ...] = (), hides: bool = True) -> str:
    stream = AnswerStream(TOKENIZER, stop, hides_leading_boxes=hides)
    return "".join(map(stream.push, TOKENIZER.encode(answer))) + stream.finish()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (f"{BOXES}2", "2"),
        (f"{BOXES} {BOXES}There are 4.", "There are 4."),
        ("<|ref|>1<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|><|ref|>2<|/ref|><|det|>[[9, 0, 19, 9]]<|/det|>2", "2"),
        (f"2{BOXES}", f"2{BOXES}"),
        (BOXES, BOXES),
        (f"{BOXES}\n", f"{BOXES}\n"),
        ("<|ref|>blue stars<|/ref|><|det|>[[0, 0,", "<|ref|>blue stars<|/ref|><|det|>[[0, 0,"),
        ("2", "2"),
        ("", ""),
    ],
)
def test_boxes_before_the_words_of_an_answer_are_left_out_and_all_others_kept(answer: str, text: str) -> None:
    assert shown(answer) == text
    assert shown(answer, hides=False) == answer


def test_a_stop_string_is_looked_for_in_the_words_alone() -> None:
    assert shown(f"{BOXES}12 blue", stop=(" blue",)) == "12"
    assert shown(f"{BOXES}2", stop=("stars",)) == "2"


@pytest.mark.parametrize(
    ("question", "hides"),
    [
        ("How many blue stars are there?", True),
        ("<|grounding|>How many blue stars are there?", False),
        ("<|ref|>blue stars<|/ref|>.", False),
    ],
)
def test_the_tags_of_the_last_question_tell_whether_boxes_are_shown(question: str, hides: bool) -> None:
    earlier = [{"role": "user", "content": "<|ref|>tree<|/ref|>."}, {"role": "assistant", "content": BOXES}]
    asked = [*earlier, {"role": "user", "content": question}]
    assert PROCESSOR.encode(asked).hides_leading_boxes is hides
    assert not PLAIN.encode(asked).hides_leading_boxes


def test_a_raw_prompt_hides_nothing() -> None:
    assert not PROCESSOR.encode_prompt("How many?").hides_leading_boxes


def test_a_reply_has_the_boxes_that_its_text_leaves_out() -> None:
    image = Image.new("RGB", (200, 100))
    sample = PROCESSOR.encode([user_turn("How many blue stars are there?", [image])])
    builder, stream = ReplyBuilder(sample, PROCESSOR), AnswerStream(TOKENIZER, (), hides_leading_boxes=True)
    for token in TOKENIZER.encode(f"{BOXES}2"):
        builder.add(Event(request=0, token_id=token, piece=stream.push(token), probability=0.5))
    builder.add(Event(request=0, token_id=TOKENIZER.eos_id, piece=stream.finish(), finish_reason="stop"))
    reply = builder.build()
    assert reply.text == "2"
    assert [(box.label, [round(v) for v in box.xyxy_px]) for box in reply.boxes] == [
        ("blue stars", [0, 0, 100, 50]),
        ("blue stars", [100, 0, 200, 100]),
    ]
    assert len(reply.to_dict()["boxes"]) == 2
    assert reply.confidence((0, 1)) == 0.5


def test_the_setting_is_written_and_read_and_has_two_values() -> None:
    values = PROCESSOR.config.to_dict()
    assert values["hides_leading_boxes"] is True
    assert PreprocessConfig.from_dict(values).hides_leading_boxes
    del values["hides_leading_boxes"]
    assert not PreprocessConfig.from_dict(values).hides_leading_boxes
    with pytest.raises(UserError, match=r"hides_leading_boxes must be true or false, got 'yes'"):
        PreprocessConfig.from_dict({**values, "hides_leading_boxes": "yes"})
