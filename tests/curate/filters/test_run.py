"""A chain of filters: in order, with a ledger, and the same on Ray as here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.curate.filters.examples import record, scene
from vl2.curate.filters.duplicate_images import DuplicateImage
from vl2.curate.filters.duplicate_texts import DuplicateText
from vl2.curate.filters.filter_chain import Counts, Filter, OrderedFilter, run_filters
from vl2.curate.filters.record_filters import Damaged, Tiny
from vl2.data.ray_map import map_in_order
from vl2.data.record import Record, StoredImage
from vl2.errors import UserError


def chain() -> list[Filter | OrderedFilter]:
    return [Tiny(), DuplicateImage(), Damaged(), DuplicateText()]


RECORDS = [
    record("a", scene(0)),
    record("tiny", StoredImage(data=b"never opened", width=4, height=4)),
    record("b", scene(1)),
    record("copy", scene(0).resize((120, 90))),
    record("broken", StoredImage(data=b"broken", width=99, height=99)),
    record("t"),
    record("text", answer="A long answer about nothing at all."),
    record("text-copy", answer="a long answer, about nothing at all"),
]


def run(folder: Path, **options: Any) -> tuple[list[Record], list[dict[str, Any]], Counts]:
    counts = Counts()
    ledger = folder / "ledger.jsonl"
    kept = list(run_filters(RECORDS, chain(), ledger=ledger, counts=counts, **options))
    return kept, [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()], counts


def test_a_chain_keeps_drops_and_tells_why(tmp_path: Path) -> None:
    kept, ledger, counts = run(tmp_path)
    assert [each.id for each in kept] == ["a", "b", "t", "text"]
    assert [line["id"] for line in ledger] == [each.id for each in RECORDS]
    by = {line["id"]: line["filter"] for line in ledger if not line["kept"]}
    expected = {"tiny": "tiny", "copy": "duplicate_image", "broken": "duplicate_image", "text-copy": "duplicate_text"}
    assert by == expected
    assert all(line["why"] for line in ledger if not line["kept"])
    assert (counts.seen, counts.kept, counts.dropped["duplicate_image"]) == (8, 4, 2)


def test_a_filter_stands_once_in_a_chain() -> None:
    with pytest.raises(UserError, match="once in a chain, got tiny, tiny"):
        list(run_filters([], [Tiny(), Tiny()]))


def test_a_place_that_is_not_known_is_one_line() -> None:
    with pytest.raises(UserError, match="local, ray, got 'moon'"):
        map_in_order(str, [1], on="moon")  # type: ignore[arg-type]


def test_ray_gives_what_this_machine_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "ray").mkdir()
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", object_store_memory=80 * 2**20)
    try:
        assert run(tmp_path / "ray", on="ray") == run(tmp_path)
        # Two windows; tuples stay tuples and objects stay objects.
        assert list(map_in_order(lambda n: (n, {n}), range(5), on="ray", window=3)) == [(n, {n}) for n in range(5)]
    finally:
        ray.shutdown()
