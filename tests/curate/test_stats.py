"""Counts are those of the encoded samples, sums add up, and plots are pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.data.sample_records import good_records, page, picture, text_only
from vl2.curate.stats import Stats, Tally, gather
from vl2.data.index import TokenCounts, count_tokens
from vl2.data.record import Record
from vl2.data.store import Located, Place, Problem
from vl2.data.stored_image import open_stored
from vl2.errors import UserError
from vl2.process.processor import Processor

NANO = Path(__file__).parents[2] / "src" / "vl2" / "nano"


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor.from_folder(NANO)


def many_images(count: int) -> Record:
    sizes = [(400, 90), (168, 168), (500, 700), (30, 900)][:count]
    content = [{"type": "image", "image": index} for index in range(count)]
    values = {"id": f"i{count}", "source": "made", "category": "vqa", "language": "en", "licence": "MIT"}
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes, all."}]
    images = [{"bytes": picture(*size), "width": size[0], "height": size[1]} for size in sizes]
    return Record.from_dict({**values, "messages": messages, "images": images})


def located(*records: Record) -> list[Located]:
    return [Located(record=record, place=Place(file="f", row=row)) for row, record in enumerate(records)]


@pytest.mark.parametrize("tiling", ["paper", "per-image", "budget:900"])
def test_counting_without_pixels_is_counting_the_sample(tiling: str, processor: Processor) -> None:
    processor = processor.with_tiling(tiling)
    for record in (*good_records(4), page("page"), *(many_images(count) for count in (1, 2, 3, 4))):
        images = [open_stored(image) for image in record.images]
        sample = processor.encode(record.to_turns(images), train=True)
        counts = count_tokens(record, processor)
        assert counts == TokenCounts.of_sample(sample)
        assert counts.total == len(sample)
        assert counts.tiles == len(sample.tiles)
        assert 0 < counts.trained < counts.text


def test_groups_and_histograms_sum_to_the_total(processor: Processor) -> None:
    records = [*good_records(9), many_images(2), many_images(4)]
    problem = Problem(place=Place(file="f"), id=None, kind="unreadable", why="damaged")
    stats = gather([*located(*records), problem], processor)
    assert (stats.total.records, stats.skipped) == (11, 1)
    for groups in stats.groups().values():
        sums = Tally()
        for tally in groups.values():
            for name, value in vars(tally).items():
                setattr(sums, name, getattr(sums, name) + value)
        assert sums == stats.total
    assert sum(stats.tiles_per_image.values()) == stats.total.images == 13
    assert sum(tiles * images for tiles, images in stats.tiles_per_image.items()) == stats.total.tiles
    assert sum(stats.lengths.values()) == 11
    assert stats.by_language["zh"].visual_tokens == 0
    assert list(stats.to_dict()["by_category"]) == ["grounding", "vqa", "text"]  # most tokens first


def test_a_length_is_counted_under_the_power_of_two_that_holds_it() -> None:
    stats = Stats()
    for text in (1, 2, 3, 4, 5, 1024, 1025):
        stats.add(text_only("x"), TokenCounts(text=text, trained=1, visual=0, grids=(), tiles_per_image=()))
    assert dict(stats.lengths) == {1: 1, 2: 1, 4: 2, 8: 1, 1024: 1, 2048: 1}


@pytest.mark.parametrize("number", [0, 6, 30])
def test_plots_are_pictures(number: int, processor: Processor, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from vl2.curate.stats import save_plots

    records = [Record.from_dict({**text_only(f"r{i}").to_dict(), "source": f"$s_{i}^$ 中"}) for i in range(number)]
    paths = save_plots(gather(located(*records, *good_records(number)), processor), f"{tmp_path}/new/plots")
    assert [path.name for path in paths] == [
        "tokens_by_category.png",
        "tokens_by_language.png",
        "tokens_by_source.png",
        "tiles_per_image.png",
        "lengths.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 500


def test_without_matplotlib_plots_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vl2.curate.stats import save_plots

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'plotting needs matplotlib.*: pip install -e ".+\[data\]"'):
        save_plots(Stats(), str(tmp_path))
