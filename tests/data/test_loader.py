"""The loader: kept promises of the plan on real pictures, exact resumption after a kill, ranks that come and go."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch

from tests.data import loader_case
from tests.data.loader_case import SEQ_LEN, make_loader, make_plan, make_processor, make_record, make_stores
from vl2.data.loader import LoadedStep, Loader
from vl2.data.pack import Packed, pack_samples
from vl2.data.record import Record, StoredImage
from vl2.errors import UserError
from vl2.model.attention import AttentionMask


def names(step: LoadedStep) -> list[tuple[str, ...]]:
    return [packed.names for packed in step.packs]


@pytest.fixture(scope="module")
def steps() -> list[LoadedStep]:
    return list(islice(make_loader(), 12))


def test_a_step_holds_the_planned_samples_as_the_processor_encodes_them(steps: list[LoadedStep]) -> None:
    stores, processor = make_stores(), make_processor()
    plan = make_plan(stores, processor)
    for number, (step, planned) in enumerate(zip(steps, plan.steps(), strict=False)):
        assert step.number == number
        for packed, place in zip(step.packs, step.division.ranks[0], strict=True):
            entries = planned.packs[place].entries
            borders = packed.cu_seqlens.tolist()
            assert packed.names == tuple(stores[e.source][e.record].id for e in entries)
            assert len(packed) == borders[-1] == SEQ_LEN
            for entry, (start, stop) in zip(entries, pairwise(borders), strict=False):
                record = stores[entry.source][entry.record]
                sample = processor.encode(record.to_turns(), train=True)
                assert packed.input_ids[start:stop].equal(sample.input_ids)
                assert packed.labels[start + 1 : stop].equal(sample.labels[1:])
                assert packed.image_mask[start:stop].equal(sample.image_mask)
            assert len(packed.tiles) == planned.packs[place].num_tiles


def test_padding_is_made_where_the_pack_is(steps: list[LoadedStep]) -> None:
    packed = steps[0].packs[0]
    with torch.device("meta"):  # what names no device of its own would be made here
        longer = packed.with_length(len(packed) + 5)
    assert longer.position_ids.device == packed.position_ids.device
    assert longer.position_ids.tolist()[-5:] == [int(longer.position_ids[-5]) + i for i in range(5)]


def test_no_sample_sees_another_and_positions_restart(steps: list[LoadedStep]) -> None:
    for packed in (packed for step in steps for packed in step.packs):
        mask = AttentionMask.of_documents(packed.cu_seqlens, packed.max_seqlen).dense(
            len(packed), len(packed), packed.cu_seqlens.device
        )
        assert mask is not None
        borders = packed.cu_seqlens.tolist()
        assert int(mask.sum()) == sum((b - a) * (b - a + 1) // 2 for a, b in pairwise(borders))
        for start, stop in pairwise(borders):
            assert not mask[start:stop, :start].any()
            assert not mask[start:stop, stop:].any()
            assert packed.position_ids[start:stop].tolist() == list(range(stop - start))
            assert packed.labels[start] == -100  # nothing learns to predict it from the sample before
        assert packed.max_seqlen == max(b - a for a, b in pairwise(borders))
        padding = ~packed.token_mask
        assert packed.input_ids[padding].eq(make_processor().tokenizer.pad_id).all()
        assert packed.labels[padding].eq(-100).all()


def test_workers_change_nothing(steps: list[LoadedStep]) -> None:
    threaded = list(islice(make_loader(num_workers=3, read_ahead=7), len(steps)))
    for ours, theirs in zip(steps, threaded, strict=True):
        assert names(ours) == names(theirs)
        for mine, other in zip(ours.packs, theirs.packs, strict=True):
            assert mine.input_ids.equal(other.input_ids)
            assert mine.tiles.equal(other.tiles)


def test_read_ahead_is_not_part_of_the_state(steps: list[LoadedStep]) -> None:
    loader = make_loader(num_workers=2, read_ahead=20)
    for _ in islice(loader, 5):
        pass
    resumed = make_loader()
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert [names(step) for step in islice(resumed, 7)] == [names(step) for step in steps[5:]]
    assert resumed.state_dict()["step"] == 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to start a loader twenty times quickly")
def test_killed_twenty_times_the_loader_gives_the_same_samples_in_the_same_order(tmp_path: Path) -> None:
    log, root = tmp_path / "log", Path(__file__).parents[2]
    path = os.pathsep.join([str(root / "src"), str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    seed = random.randrange(1000)
    subprocess.run(
        [sys.executable, "-m", loader_case.__name__, str(log), "20", str(seed)],
        check=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,
    )
    lines = [json.loads(line) for line in loader_case.whole_lines(log)]
    assert len(lines) > 10, f"seed {seed}"
    uninterrupted = islice(make_loader(), len(lines))
    expected = [{"step": step.number, "names": loader_case.names(step)} for step in uninterrupted]
    assert [{"step": line["step"], "names": line["names"]} for line in lines] == expected, f"seed {seed}"


def test_two_ranks_become_three_and_the_global_steps_stay(steps: list[LoadedStep]) -> None:
    two = [make_loader(rank, 2) for rank in range(2)]
    first = [list(islice(loader, 4)) for loader in two]
    states = [loader.state_dict() for loader in two]
    assert states[0] == states[1]
    three = [make_loader(rank, 3) for rank in range(3)]
    for loader in three:
        loader.load_state_dict(states[0])
    second = [list(islice(loader, 4)) for loader in three]
    together = [*zip(*first, strict=True), *zip(*second, strict=True)]
    for whole, parts in zip(steps, together, strict=False):
        assert sorted(name for part in parts for name in names(part)) == sorted(names(whole))
        assert {part.number for part in parts} == {whole.number}
        assert all(part.division == parts[0].division for part in parts)


def test_more_ranks_than_packs_leave_some_idle_and_all_know_it() -> None:
    loaders = [make_loader(rank, 7, num_workers=1) for rank in (0, 6)]
    busy, idle = (list(islice(loader, 3)) for loader in loaders)
    assert [len(step.packs) for step in busy] == [1, 1, 1]
    assert [len(step.packs) for step in idle] == [0, 0, 0]
    assert [sum(map(bool, step.division.ranks)) for step in busy] == [5, 5, 5]


def damaged(record: Record) -> Record:
    image = record.images[0]
    return replace(record, images=(replace(image, data=b"not a picture"),))


def test_a_record_that_fails_becomes_padding_and_is_reported(steps: list[LoadedStep]) -> None:
    stores, processor = make_stores(), make_processor()
    plan = make_plan(stores, processor)
    stores["photos"][3] = damaged(stores["photos"][3])
    stores["web"][5] = make_record("text", 1005)  # of another length than the index says
    loader = Loader(plan, stores, processor)
    lost = {"caption-3", "text-5"}
    for whole, step in zip(steps, loader, strict=False):
        assert names(step) == [tuple(name for name in pack if name not in lost) for pack in names(whole)]
        assert [len(packed) for packed in step.packs] == [SEQ_LEN] * len(step.packs)
    assert {(p.source, p.record) for p in loader.problems} == {("photos", 3), ("web", 5)}
    messages = {p.source: p.message for p in loader.problems}
    assert "cannot read image" in messages["photos"]
    assert "the index says" in messages["web"]
    assert all("\n" not in message for message in messages.values())


def test_without_padding_a_pack_is_as_long_as_planned() -> None:
    step = next(iter(make_loader(is_padded=False)))
    assert all(len(packed) == packed.num_tokens == packed.cu_seqlens[-1] for packed in step.packs)
    assert any(len(packed) < SEQ_LEN for packed in step.packs)


def test_a_pack_of_nothing_is_padding() -> None:
    packed = pack_samples([], make_processor(), 16)
    assert packed.cu_seqlens.tolist() == [0, 16]
    assert (packed.num_tokens, packed.names, tuple(packed.tiles.shape)) == (0, (), (0, 3, 168, 168))
    assert packed.position_ids.tolist() == list(range(16))
    assert len(pack_samples([], make_processor())) == 0


def test_samples_longer_than_the_sequence_are_refused() -> None:
    sample = make_processor().encode([{"role": "user", "content": "hello"}])
    with pytest.raises(UserError, match="more than the sequence of 4"):
        pack_samples([sample], make_processor(), 4)


def test_a_pack_checks_its_counts() -> None:
    record = make_record("caption", 0)
    sample = make_processor().encode(record.to_turns(), train=True)
    packed = pack_samples([sample], make_processor())
    assert isinstance(packed.to("cpu"), Packed)
    with pytest.raises(AssertionError, match="visual slots"):
        replace(packed, image_mask=torch.zeros_like(packed.image_mask))
    with pytest.raises(AssertionError, match="tiles"):
        replace(packed, tiles=packed.tiles[:-1])


def test_a_record_that_names_files_is_reported(steps: list[LoadedStep]) -> None:
    stores, processor = make_stores(), make_processor()
    plan = make_plan(stores, processor)
    image = stores["photos"][3].images[0]
    file = StoredImage(path="/etc/passwd", width=image.width, height=image.height)
    stores["photos"][3] = replace(stores["photos"][3], images=(file,))
    loader = Loader(plan, stores, processor)
    for _ in islice(loader, len(steps)):
        pass
    assert {lost.message for lost in loader.problems} == {
        "record caption-3 names image files: a store must give the bytes of images"
    }


def test_a_state_of_another_plan_and_wrong_arguments_are_refused() -> None:
    loader = make_loader()
    state = loader.state_dict()
    with pytest.raises(UserError, match="another plan"):
        loader.load_state_dict({**state, "plan": "0"})
    with pytest.raises(UserError, match="must have window, pack, step and plan"):
        loader.load_state_dict({"window": 0})
    with pytest.raises(UserError, match=r"rank must be in 0\.\.1, got 2"):
        make_loader(2, 2)
    with pytest.raises(UserError, match="num_workers"):
        make_loader(num_workers=-1)
    with pytest.raises(UserError, match="draws from 'photos'"):
        Loader(loader.plan, {"web": []}, make_processor())
