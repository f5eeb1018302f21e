"""Checkpoints: whole or not there, kept by rule, and read by another number of ranks than wrote them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.train.checkpoint import (
    Checkpoints,
    Retention,
    checkpoint_steps,
    find_checkpoint,
    newest_checkpoint,
    random_state,
    read_state,
    set_random_state,
)
from vl2.train.ranks import Ranks
from vl2.train.tensor_files import Block, TensorReader, fill, take_snapshot, whole_block, write_tensors


def some_state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shared = draw(4, 3)
    return {
        "model": {"a.weight": shared, "bias": draw(5).bfloat16(), "none": draw(0, 3)},
        "optimizer": {"a.weight": {"master": shared, "first": draw(4, 3)}, "count": torch.tensor(seed)},
        "list": [draw(2), {"x": draw(1)}],
        "values": {"step": seed, "name": "x", "flag": True, "rate": 0.1 + seed},
    }


def flat(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict | list):
        return [t for one in (state.values() if isinstance(state, dict) else state) for t in flat(one)]
    return []


def test_a_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    state, target = some_state(1), some_state(2)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, state, "seed = 0\n")
    checkpoints.wait()
    places = [tensor.data_ptr() for tensor in flat(target)]
    loaded = checkpoints.load(find_checkpoint(tmp_path), target)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(flat(loaded), flat(state), strict=True))
    assert [tensor.data_ptr() for tensor in flat(loaded)] == places, "filled in place"
    assert loaded["values"] == state["values"]
    assert read_state(find_checkpoint(tmp_path))["step"] == 7
    assert (find_checkpoint(tmp_path) / "recipe.toml").read_text() == "seed = 0\n"


def test_what_changes_after_the_save_is_not_written(tmp_path: Path) -> None:
    state = some_state(1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, "")
    for tensor in flat(state):
        tensor.fill_(9)
    checkpoints.wait()
    loaded = checkpoints.load(find_checkpoint(tmp_path), some_state(2))
    assert all(torch.equal(a, b) for a, b in zip(flat(loaded), flat(some_state(1)), strict=True))


def test_two_names_of_one_memory_are_stored_once(tmp_path: Path) -> None:
    write_tensors(take_snapshot(some_state(), whole_block, writes_whole=True), tmp_path, 0)
    table = json.loads((tmp_path / "rank-00000.json").read_text())["tensors"]
    assert table["optimizer/a.weight/master"]["stored_as"] == table["model/a.weight"]["stored_as"] == "model/a.weight"


def test_random_numbers_go_on_where_they_were() -> None:
    state = json.loads(json.dumps({"python": random_state()["python"]})) | {"torch": torch.get_rng_state()}
    expected = random.random(), torch.rand(3)
    set_random_state(state)
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


@pytest.mark.parametrize("wrote_cuda", [False, True])
@pytest.mark.parametrize("has_cuda", [False, True])
def test_a_checkpoint_is_read_whether_or_not_both_machines_have_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrote_cuda: bool, has_cuda: bool
) -> None:
    generator = torch.full((16,), 7, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: generator.clone())
    taken: list[Tensor] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state", taken.append)
    checkpoints = Checkpoints(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: wrote_cuda)
    checkpoints.save(1, {"x": torch.ones(1)}, "")
    checkpoints.wait()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    generator.fill_(9)
    loaded = checkpoints.load(find_checkpoint(tmp_path), {"x": torch.zeros(1)})
    assert float(loaded["x"]) == 1.0
    assert [state.tolist() for state in taken] == ([[7] * 16] if wrote_cuda and has_cuda else [])


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (Retention(newest=2), [8, 10]),
        (Retention(newest=1, every_steps=4), [4, 8, 10]),
        (Retention(newest=9), [2, 4, 6, 8, 10]),
    ],
)
def test_old_checkpoints_go_by_rule(tmp_path: Path, keep: Retention, left: list[int]) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    for step in range(2, 12, 2):
        checkpoints.save(step, {"x": torch.ones(1)}, "")
    checkpoints.wait()
    assert checkpoint_steps(tmp_path) == left


def test_what_is_not_whole_is_never_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2, 3, 4):
        checkpoints.save(step, {"x": torch.ones(100)}, "")
    checkpoints.wait()
    folder = tmp_path / "checkpoints"
    (folder / "step-00000004" / "state.json").write_text('{"format": 1, "st')
    tensors = folder / "step-00000003" / "rank-00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    (folder / "step-00000002").rename(folder / ".step-00000009.partial")
    assert checkpoint_steps(tmp_path) == []
    checkpoints.remove_partial()
    assert not (folder / ".step-00000009.partial").exists()
    checkpoints.save(5, {"x": torch.ones(1)}, "")
    checkpoints.wait()
    assert newest_checkpoint(tmp_path) == folder / "step-00000005"


def test_a_write_that_fails_is_one_line_and_leaves_the_last_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(1)}, "")
    checkpoints.wait()
    # A folder that is not empty stands in the place of the file.
    blocked = Checkpoints(tmp_path)
    blocked.save(2, {"x": torch.ones(1)}, "")
    blocked.wait()
    (tmp_path / "checkpoints").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match=r"^cannot write the checkpoint of step 3 in .*; there is no complete one$"):
        checkpoints.save(3, {"x": torch.ones(1)}, "")
    assert checkpoint_steps(tmp_path) == []


class OfTwo(Ranks):
    """One of two ranks that meet nowhere."""

    def barrier(self) -> None:
        pass


def checkpoints_of_two(folder: Path, **options: Any) -> list[Checkpoints]:
    ranks = [OfTwo(rank=rank, size=2, device=torch.device("cpu")) for rank in range(2)]
    return [Checkpoints(folder, ranks=of, **options) for of in ranks]


def test_a_checkpoint_is_given_up_when_the_part_of_a_lost_rank_never_comes(tmp_path: Path) -> None:
    first, _ = checkpoints_of_two(tmp_path)
    first.save(1, {"x": torch.ones(1)}, "")
    first.give_up(0.1)
    first.close()  # returns: the writer waits no more
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_fails_when_the_part_of_another_rank_is_too_late(tmp_path: Path) -> None:
    first, _ = checkpoints_of_two(tmp_path, most_wait_s=0.1)
    first.save(1, {"x": torch.ones(1)}, "")
    with pytest.raises(UserError, match="the other ranks have not written their parts"):
        first.wait()
    assert checkpoint_steps(tmp_path) == []


def test_a_checkpoint_becomes_whole_though_a_rank_is_lost_that_has_written_its_part(tmp_path: Path) -> None:
    first, second = checkpoints_of_two(tmp_path)
    first.save(1, {"x": torch.ones(1)}, "")
    second.save(1, {"x": torch.ones(1)}, "")
    first.give_up(60.0)
    assert checkpoint_steps(tmp_path) == [1]


def cut(whole: Tensor, rank: int, size: int, axis: int) -> Block:
    """Return a rank's block of a tensor, as large as the others' but for the last ones."""
    part = -(-whole.shape[axis] // size)
    start = min(part * rank, whole.shape[axis])
    local = whole.narrow(axis, start, min(part, whole.shape[axis] - start)).clone()
    origin = tuple(start if i == axis else 0 for i in range(whole.dim()))
    return Block(local=local, origin=origin, shape=tuple(whole.shape))


@pytest.mark.parametrize("axes", [(0, 0), (0, 1), (1, 0), (2, 1)])
@pytest.mark.parametrize(("writers", "readers"), [(1, 1), (1, 3), (3, 1), (2, 4), (4, 3), (5, 5)])
def test_any_number_of_ranks_reads_what_any_number_wrote(
    tmp_path: Path, writers: int, readers: int, axes: tuple[int, int]
) -> None:
    whole = torch.arange(4 * 7 * 6, dtype=torch.float32).reshape(4, 7, 6)
    for rank in range(writers):
        snapshot = take_snapshot({"w": whole}, lambda t, r=rank: cut(t, r, writers, axes[0]), writes_whole=rank == 0)
        write_tensors(snapshot, tmp_path, rank)
    for rank in range(readers):
        wanted = cut(whole, rank, readers, axes[1])
        expected = wanted.local.clone()
        wanted.local.fill_(-1)
        TensorReader(tmp_path).read("w", wanted)
        assert torch.equal(wanted.local, expected)


def test_another_model_is_refused_by_the_name_of_its_tensor(tmp_path: Path) -> None:
    write_tensors(take_snapshot({"w": torch.ones(2, 3)}, whole_block, writes_whole=True), tmp_path, 0)
    reader = TensorReader(tmp_path)
    with pytest.raises(UserError, match=r"w is \[2, 3\], the model has \[3, 3\]"):
        fill({"w": torch.ones(3, 3)}, {}, reader, whole_block)
    with pytest.raises(UserError, match="has no v: another kind of run wrote it"):
        fill({"v": torch.ones(1)}, {}, reader, whole_block)
    assert reader.unread() == []


def test_nothing_in_a_checkpoint_can_run(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, some_state(), "")
    checkpoints.wait()
    kinds = {path.suffix for path in find_checkpoint(tmp_path).iterdir()}
    assert kinds == {".safetensors", ".json", ".toml"}
