"""Every synthetic source: the same seed gives the same bytes, records are valid, and the processor reads them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

import vl2
from vl2.data.record import Record
from vl2.errors import UserError
from vl2.process.grounding import parse_strict
from vl2.process.processor import Processor
from vl2.synth.browser import find_browser
from vl2.synth.catalog import SOURCES, find_source, make_source
from vl2.synth.plot_code import PlotCode
from vl2.synth.source import LEAST, Dropped, GenerationTally, Source, generate

NANO = Path(vl2.__file__).parent / "nano"
NAMES = sorted(SOURCES)


def small(name: str) -> Source:
    # A script takes half a second to run: only one kind of them where any will do.
    return PlotCode(tasks=("bar",)) if name == "plot_code" else SOURCES[name]()


def count_for(name: str) -> int:
    slow = {"plot_code": 2, "web_page": 2, "article": 8, "album": 8, "document": 8}
    return slow.get(name, 24)


@pytest.mark.parametrize("name", NAMES)
def test_records_are_valid_repeatable_and_read_by_the_processor(name: str) -> None:
    source, count = small(name), count_for(name)
    if name in ("chart", "formula", "plot_code"):
        pytest.importorskip("matplotlib")
    if name == "web_page" and find_browser() is None:
        pytest.skip("there is no Chromium here")
    tally = GenerationTally()
    records = list(generate(source, count, seed=3, tally=tally))
    assert tally.made == len(records) == count - sum(tally.dropped.values())
    # What does not fit into a picture depends on the fonts of the machine. Nothing else may drop many pictures.
    too_large = sum(number for why, number in tally.dropped.items() if "too long" in why or "too large" in why)
    assert too_large <= count / 2
    assert len(records) > 0.8 * (count - too_large)
    assert len({record.id for record in records}) == len(records)
    processor = Processor.from_folder(NANO)
    for record in records:
        assert Record.from_dict(record.to_dict()) == record
        images = [Image.open(io.BytesIO(stored.data or b"")) for stored in record.images]
        assert [image.size for image in images] == [(stored.width, stored.height) for stored in record.images]
        parse_strict("".join(turn.text for turn in record.to_turns(images) if turn.role == "assistant"))
    sample = processor.encode(records[0].to_turns(), train=True)
    assert (sample.labels >= 0).any()
    again = source.make(int(records[0].id[-7:]), 3)
    assert again == records[0]
    assert next(iter(generate(source, count, seed=4))).messages != records[0].messages


def test_the_number_of_processes_changes_nothing() -> None:
    source = SOURCES["scene"]()
    here = list(generate(source, 40, seed=5))
    assert list(generate(source, 40, seed=5, processes=2)) == here
    assert list(generate(source, 15, seed=5, start=25)) == here[25:]


class Failing(Source):
    """Drops every third record."""

    name = "failing"
    category = "text"
    tasks_known = ("one",)

    def draft(self, rng):  # type: ignore[no-untyped-def]
        raise AssertionError("make is replaced")

    def make(self, index: int, seed: int) -> Record:
        if index % 3 == 0:
            raise Dropped("divisible by three")
        return SOURCES["arithmetic"](tasks=("angle",)).make(index, seed)


def test_dropped_records_are_counted_by_reason_and_the_bar_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = GenerationTally()
    assert len(list(generate(Failing(), 7, tally=tally, progress=True))) == 4
    assert (tally.made, tally.dropped) == (4, {"divisible by three": 3})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "failing" in printed.err


def test_mistakes_are_one_line() -> None:
    with pytest.raises(UserError, match=r"tasks of scene are name, .* got 'nothing'"):
        SOURCES["scene"](tasks=("nothing",))
    with pytest.raises(UserError, match=r"a synthetic source is one of text_image, .* got 'pictures'"):
        find_source("pictures")
    with pytest.raises(UserError, match="form of arithmetic is one of mixed, worked, concise, got 'workd'"):
        make_source("arithmetic", {"form": "workd"})
    with pytest.raises(UserError, match="max_side_px must be at least min_side_px, 96, got 80"):
        make_source("emoji", {"max_side_px": "80"})
    with pytest.raises(UserError, match="languages of scene are en and zh"):
        make_source("album", {"scene.languages": "fr"})
    with pytest.raises(UserError, match="processes at least 1"):
        list(generate(SOURCES["scene"](), 1, processes=0))


@pytest.mark.parametrize("name", NAMES)
def test_settings_that_leave_nothing_to_draw_are_refused_and_the_least_are_drawn(name: str) -> None:
    least = {each: value for each, value in LEAST.items() if each in SOURCES[name].__dataclass_fields__}
    bounded = {each for each in SOURCES[name].__dataclass_fields__ if each.startswith(("max_", "min_"))}
    assert bounded <= set(least)
    for setting, value in least.items():
        message = f"{setting} of {name} must be at least {value}, got {value - 1}"
        with pytest.raises(UserError, match=message):
            make_source(name, {setting: value - 1})
    if "languages" in SOURCES[name].__dataclass_fields__:
        for given, said in (("fr", "fr"), ("en,fr", "en, fr"), ("", "none")):
            with pytest.raises(UserError, match=f"languages of {name} are en and zh, or one of them, got {said}"):
                make_source(name, {"languages": given})
    if name != "web_page" and least:
        list(generate(make_source(name, least), min(12, count_for(name))))


def test_the_passages_of_an_album_name_their_pictures(tmp_path: Path) -> None:
    texts = "Nothing here.\nA triangle has three corners.\nTriangular it is.\n"
    (tmp_path / "en.txt").write_text(texts, encoding="utf-8")
    source = SOURCES["album"](texts_en=str(tmp_path / "en.txt"))
    said = [p.text or "" for r in generate(source, 30) if r.language == "en" for p in r.messages[0].parts]
    assert any("A triangle has three corners." in text for text in said)
    assert not any("Nothing here." in text or "Triangular" in text for text in said)
    assert {(r.category, r.messages[0].role, r.licence) for r in generate(source, 5)} == {
        ("interleaved", "document", "check")
    }
