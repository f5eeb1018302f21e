"""Each filter keeps what is good, drops what is not, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.curate.filters.examples import encoded, record, scene
from vl2.curate.filters.filter_chain import KEPT, Filter, Verdict
from vl2.curate.filters.record_filters import (
    Damaged,
    Language,
    Repetition,
    Tiny,
    TooLong,
    count_characters,
    repeated_share,
)
from vl2.curate.record_texts import words_of
from vl2.data.record import Record, StoredImage
from vl2.errors import UserError
from vl2.process.processor import Processor

DAMAGED = encoded(scene(1))[:-400]
NANO = Path(__file__).parents[3] / "src" / "vl2" / "nano"


def test_a_dropped_record_always_has_a_reason() -> None:
    with pytest.raises(ValueError, match="reason"):
        Verdict(kept=False)


def test_damaged_images_are_dropped_with_what_is_wrong(tmp_path: Path) -> None:
    picture = scene(0)
    (tmp_path / "a.png").write_bytes(encoded(picture))
    good = StoredImage(path="a.png", width=240, height=180)
    assert Damaged(root=tmp_path)(record("a", good, picture)) == KEPT
    cases = {
        "cannot read image": StoredImage(data=DAMAGED, width=240, height=180),
        "No such file": StoredImage(path="b.png", width=240, height=180),
        "240 x 180 px, the record says 180 x 240 px": StoredImage(path="a.png", width=180, height=240),
        "cannot read": StoredImage(data=b"", width=1, height=1),
    }
    for why, image in cases.items():
        verdict = Damaged(root=tmp_path)(record("a", image))
        assert not verdict.kept
        assert why in verdict.why
        assert "\n" not in verdict.why


@pytest.mark.parametrize(
    ("width", "height", "why"),
    [(32, 32, ""), (31, 500, "below 32 px"), (32, 512, ""), (513, 32, "aspect is above 16"), (4000, 3000, "")],
)
def test_tiny_and_narrow_images_are_dropped(width: int, height: int, why: str) -> None:
    verdict = Tiny()(record("a", StoredImage(data=b"unread", width=width, height=height)))
    assert verdict.kept == (not why)
    assert why in verdict.why


def test_long_records_are_dropped_by_characters_or_tokens() -> None:
    short = record("a", scene(0))
    assert count_characters(short) == len("What is this?" + "A picture.")
    assert TooLong(limit=23)(short) == KEPT
    assert TooLong(limit=22)(short).why == "23 characters, the limit is 22"
    processor = Processor.from_folder(NANO)
    tokens = len(processor.encode(short.to_turns([scene(0)]), train=True).input_ids)
    assert TooLong.in_tokens(tokens, processor)(short) == KEPT
    assert TooLong.in_tokens(tokens - 1, processor)(short).why == f"{tokens} tokens, the limit is {tokens - 1}"
    damaged = record("b", StoredImage(data=DAMAGED, width=240, height=180))
    assert "its length cannot be counted" in TooLong.in_tokens(9, processor)(damaged).why


def test_stuck_answers_are_dropped_in_any_script() -> None:
    stuck = "The image shows a cat on a mat. " * 6
    prose = "A grey cat sleeps on a striped mat beside the door, while two children read at the table behind it."
    assert repeated_share(prose, 4) == 0
    assert repeated_share("", 4) == 0
    assert Repetition()(record("a", answer=prose)) == KEPT
    for answer in (stuck, "这张图片里有一只猫。" * 6):
        verdict = Repetition()(record("a", answer=answer))
        assert "are repeats" in verdict.why


@pytest.mark.parametrize(
    ("language", "answer", "is_kept"),
    [
        ("zh", "图片里有一只灰色的猫睡在门边的垫子上", True),
        ("zh", "图片里的 logo 写着 Coffee Shop 两个英文词", True),
        ("zh", "图片里有 a grey cat that sleeps on the mat beside the door", False),
        ("en", "A grey cat sleeps on a mat beside the door", True),
        ("en", "A cat 睡在门边的垫子上旁边有两个孩子", False),
        ("en", "海底捞火锅", True),  # a reading
    ],
)
def test_answers_in_another_script_are_dropped(language: str, answer: str, is_kept: bool) -> None:
    assert Language()(record("a", answer=answer, language=language)).kept == is_kept


def test_words_are_lower_case_and_chinese_characters_stand_alone() -> None:
    assert words_of("Ｔotal: 42 灰猫, C’est") == ["total", "42", "灰", "猫", "c", "est"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tiny(min_side_px=0),
        lambda: TooLong(limit=0),
        lambda: Repetition(max_share=2),
        lambda: Language(max_foreign=-1),
    ],
)
def test_settings_out_of_range_are_one_line(make: type[Filter]) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+ must be [^\n]+, got [^\n]+$"):
        make()


def test_records_without_images_pass_the_image_filters() -> None:
    text: Record = record("a")
    assert Tiny()(text) == Damaged()(text) == KEPT
