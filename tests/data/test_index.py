"""The index: it counts what the processor will make, without a pixel, and refuses to be used with other settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.loader_case import make_processor, make_record, make_stores
from tests.data.sample_records import page
from vl2.data import index as index_module
from vl2.data.index import StoreIndex, build_index, count_tokens, settings_checksum
from vl2.data.record import Message, Part, Record
from vl2.data.store import Records, open_random, write_records
from vl2.errors import UserError


class BrokenStore:
    """A store whose second record cannot be read."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int, /) -> Record:
        if index == 1:
            raise OSError("the shard\nis cut off")
        return make_record("text", index)


@pytest.mark.parametrize("mask_prompt", [True, False])
@pytest.mark.parametrize("tiling", ["paper", "budget:400"])
@pytest.mark.parametrize("spelled", [(), ("caption",)])
def test_costs_are_those_of_the_encoded_sample(tiling: str, mask_prompt: bool, spelled: tuple[str, ...]) -> None:
    processor = replace(make_processor().with_tiling(tiling), character_level=frozenset(spelled))
    records = [record for store in make_stores().values() for record in store[:10]]
    records += [two_turns(records[0], records[1]), page("page")]
    for record in records:
        images = [image.data for image in record.images]
        sample = processor.encode(
            record.to_turns(images),
            train=True,
            mask_prompt=mask_prompt,
            spells_answers=record.category in spelled,
        )
        cost = count_tokens(record, processor, mask_prompt=mask_prompt)
        assert cost.total == len(sample)
        assert cost.tiles == len(sample.tiles)
        assert cost.trained == int((sample.labels[1:] != -100).sum())


def test_spelled_answers_make_another_index() -> None:
    plain = make_processor()
    spelled = replace(plain, character_level=frozenset(["caption"]))
    assert settings_checksum(plain) != settings_checksum(spelled)
    record = make_record("caption", 0)
    assert count_tokens(record, spelled).trained > count_tokens(record, plain).trained
    assert count_tokens(make_record("text", 0), spelled) == count_tokens(make_record("text", 0), plain)


def test_an_image_scale_makes_another_index() -> None:
    given = make_processor()
    checksums = {
        settings_checksum(replace(given, config=replace(given.config, image_scale=k))) for k in (1.0, 2.0, 3.0)
    }
    assert len(checksums) == 3


def two_turns(first: Record, second: Record) -> Record:
    """Return a conversation about the images of both, one per turn."""
    asked = Message(role="user", parts=(Part(text="And this?"), Part(image=1)))
    messages = (*first.messages, asked, second.messages[-1])
    return replace(first, messages=messages, images=(*first.images, *second.images))


def test_no_pixel_is_read() -> None:
    record = make_record("caption", 0)
    blank = replace(record, images=(replace(record.images[0], data=b"not a picture"),))
    assert count_tokens(blank, make_processor()) == count_tokens(record, make_processor())


def test_a_store_is_split_by_category() -> None:
    stores = make_stores()
    mixed = [stores["web"][0], stores["photos"][0], stores["web"][1]]
    caption, text = build_index("mixed", mixed, make_processor()).sources()
    assert (caption.key, caption.records.tolist()) == ("mixed/caption", [1])
    assert (text.key, text.records.tolist()) == ("mixed/text", [0, 2])


def test_an_unreadable_record_is_listed_and_the_others_go_on() -> None:
    index = build_index("broken", BrokenStore(), make_processor())
    assert [(p.record, p.message) for p in index.problems] == [(1, "OSError: the shard is cut off")]
    assert index.sources()[0].records.tolist() == [0, 2]


def test_processes_count_what_one_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "_RANGE", 3)
    records = [make_record("text" if number % 3 else "caption", number) for number in range(8)]
    write_records(records, str(tmp_path / "a.tar"))
    store = open_random(str(tmp_path / "a.tar"))
    calls: list[None] = []
    alone = build_index("texts", store, make_processor(), after_each=lambda: calls.append(None))
    both = build_index("texts", store, make_processor(), processes=2)
    assert len(calls) == len(alone) == 8
    for column in ("categories", "num_tokens", "num_trained", "num_tiles"):
        assert getattr(both, column).tolist() == getattr(alone, column).tolist()
    assert both.problems == alone.problems == ()


def test_an_index_survives_its_file(tmp_path: Path) -> None:
    index = build_index("broken", BrokenStore(), make_processor())
    index.save(tmp_path / "index.npz")
    loaded = StoreIndex.load(tmp_path / "index.npz", make_processor(), 3)
    assert (loaded.name, loaded.settings, loaded.problems) == (index.name, index.settings, index.problems)
    for name in ("categories", "num_tokens", "num_trained", "num_tiles"):
        assert np.array_equal(getattr(loaded, name), getattr(index, name))
    assert [path.name for path in tmp_path.iterdir()] == ["index.npz"]


def test_a_stale_index_is_refused(tmp_path: Path) -> None:
    path, processor = tmp_path / "index.npz", make_processor()
    build_index("broken", BrokenStore(), processor).save(path)
    for other in (processor.with_tiling("per-image"), processor.with_tiling("paper", max_tiles=4)):
        with pytest.raises(UserError, match="build it again"):
            StoreIndex.load(path, other, 3)
    with pytest.raises(UserError, match="build it again"):
        StoreIndex.load(path, processor, 3, mask_prompt=False)
    with pytest.raises(UserError, match="has 3 records, the store 4"):
        StoreIndex.load(path, processor, 4)


def test_an_index_of_other_files_is_refused_and_one_of_the_same_files_elsewhere_is_not(tmp_path: Path) -> None:
    processor, path = make_processor(), tmp_path / "index.npz"

    def kept(folder: str, *records: Record) -> Records:
        write_records(records, str(tmp_path / folder / "train.jsonl"))
        return open_random(str(tmp_path / folder))

    before = kept("before", make_record("text", 0), make_record("text", 1))
    build_index("texts", before, processor, files=before.checksum).save(path)
    moved = kept("moved", make_record("text", 0), make_record("text", 1))
    assert len(StoreIndex.load(path, processor, 2, files=moved.checksum)) == 2
    changed = kept("changed", make_record("text", 0), make_record("text", 123456))
    with pytest.raises(UserError, match="the files of texts have changed since the index"):
        StoreIndex.load(path, processor, len(changed), files=changed.checksum)


def test_a_missing_or_damaged_index_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no index at"):
        StoreIndex.load(tmp_path / "none.npz", make_processor(), 3)
    (tmp_path / "bad.npz").write_bytes(b"PK\3\4 no")
    with pytest.raises(UserError, match="is not an index") as caught:
        StoreIndex.load(tmp_path / "bad.npz", make_processor(), 3)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="cannot write the index"):
        build_index("broken", BrokenStore(), make_processor()).save(tmp_path / "no" / "index.npz")
