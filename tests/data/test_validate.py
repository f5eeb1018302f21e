"""A thousand damaged records of many kinds: each is reported by its place, none stops the run, no good one is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.data.damage import FIRST_GOOD, Expected, write_damaged_folder
from tests.data.sample_records import good_records, grounded, picture, text_only
from vl2.data.record import Record
from vl2.data.store import Located, Place, open_random, read_records
from vl2.data.validate import Checked, Summary, validate
from vl2.errors import UserError
from vl2.process.processor import Processor

pytest.importorskip("pyarrow")

NANO = Path(__file__).parents[2] / "src" / "vl2" / "nano"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(NANO)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    folder = tmp_path_factory.mktemp("damaged")
    return folder, write_damaged_folder(folder)


def check(*records: Record, **options: Any) -> list[Checked]:
    found = (Located(record=record, place=Place(file="f", row=row)) for row, record in enumerate(records))
    return list(validate(found, **options))


def kinds(checked: Checked) -> list[str]:
    return [problem.kind for problem in checked.problems]


def test_a_thousand_damaged_records_are_each_named_and_none_stops_the_run(
    damaged: tuple[Path, Expected], processor: Processor
) -> None:
    folder, expected = damaged
    assert len(expected.bad) == 1000
    assert len(set(expected.bad.values())) > 80
    summary, good, places = Summary(), [], Counter[str]()
    for checked in validate(read_records(str(folder)), processor=processor, max_tokens=4096):
        summary.add(checked)
        if checked.good is not None:
            good.append(checked.good.id)
        for place in {str(problem.place) for problem in checked.problems}:
            places[place] += 1
        assert all("\n" not in str(problem) for problem in checked.problems)
    missed = {kind for place, kind in expected.bad.items() if place not in places}
    assert missed == set()
    assert {place: places[place] for place in places if places[place] > 1 and place in expected.bad} == {}
    # What lies between damaged headers of a tar has no record to be named by, only the file.
    assert {place for place in places if place not in expected.bad} <= {str(folder / "b.tar")}
    assert good == expected.good
    assert summary.good == len(expected.good)
    assert {"unreadable", "record", "image", "size", "duplicate", "category", "text"} == set(summary.by_kind)


def test_reading_at_random_finds_the_same_good_records(damaged: tuple[Path, Expected], processor: Processor) -> None:
    folder, expected = damaged
    records = open_random(str(folder))
    checks = validate((records.find(index) for index in range(len(records))), processor=processor)
    assert [checked.good.id for checked in checks if checked.good is not None] == expected.good


def test_problems_say_where_who_and_why(damaged: tuple[Path, Expected]) -> None:
    folder, expected = damaged
    by_kind: dict[str, str] = {}
    for checked in validate(read_records(str(folder))):
        for problem in checked.problems:
            by_kind.setdefault(expected.bad.get(str(problem.place), ""), str(problem).replace(f"{folder}/", ""))
    for kind, says in (
        ("box outside", "[jsonl-bad-30] record: object 0: box (1.0, 2.0, 900.0, 10.0) leaves its image of 40 x 30 px"),
        ("cut in half", "unreadable: not JSON: Expecting value at character 348"),
        ("not UTF-8", "unreadable: not UTF-8 at byte"),
        ("missing image", "image: image 0: no file"),
        ("path outside", "image: image 0: path must be relative and stay in the folder of its file"),
        ("truncated image", "image: image 0: cannot read image <"),
        ("another width", "size: image 0 is 40 x 30 px upright, the record says 77 x 30"),
        ("same id", "duplicate: a.jsonl:1 has the same id"),
        ("text with an image", "category: category text is for records without images, this one has 1"),
        ("half a character", "text: message 4 has an unpaired surrogate (U+D83D)"),
        ("no json", "unreadable: no bad86.json beside bad86.0.png"),
        ("cut off", "b.tar:cut [tar-cut] image: image 0: cut.0.png is truncated"),
        ("damaged row group", "d.parquet:11 unreadable: row group 1 is damaged: "),
    ):
        assert says in by_kind[kind]
    assert FIRST_GOOD in expected.good


def test_good_records_have_no_problem(processor: Processor) -> None:
    assert not any(checked.problems for checked in check(*good_records(8), processor=processor, max_tokens=4096))


def test_a_long_record_is_a_warning(processor: Processor) -> None:
    (checked,) = check(grounded("x"), processor=processor, max_tokens=5)
    assert kinds(checked) == ["long"]
    assert checked.good is not None
    with pytest.raises(UserError, match="max_tokens must be at least 1, got 0"):
        check(grounded("x"), max_tokens=0)


def test_the_stated_size_is_that_of_the_upright_picture(processor: Processor) -> None:
    import io

    from PIL import Image

    values = grounded("x").to_dict(encode_bytes=False)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    out = io.BytesIO()
    Image.open(io.BytesIO(picture(30, 40))).save(out, "JPEG", exif=exif)
    values["images"] = [{"bytes": out.getvalue(), "width": 40, "height": 30}]
    values["objects"] = []
    assert check(Record.from_dict(values), processor=processor)[0].problems == ()


def test_one_record_may_have_several_problems_and_the_first_of_equal_ids_is_good() -> None:
    values = grounded("x").to_dict(encode_bytes=False)
    values |= {"category": "text", "images": [{"bytes": picture(5, 5), "width": 40, "height": 30}]}
    first, second = check(text_only("x"), Record.from_dict(values))
    assert first.problems == ()
    assert kinds(second) == ["duplicate", "category", "size"]


def test_problems_come_while_reading_goes_on() -> None:
    def found() -> Iterator[Located]:
        yield Located(record=text_only("a"), place=Place(file="f", row=0))
        yield Located(record=text_only("a"), place=Place(file="f", row=1))
        raise AssertionError("read ahead")

    checks = validate(found())
    assert next(checks).problems == ()
    assert kinds(next(checks)) == ["duplicate"]


def test_names_of_strangers_cannot_steer_the_terminal() -> None:
    (_, second) = check(text_only("a\x1b[2J\nb"), text_only("a\x1b[2J\nb"))
    assert str(second.problems[0]) == "f:2 [a?[2J b] duplicate: f:1 has the same id"
