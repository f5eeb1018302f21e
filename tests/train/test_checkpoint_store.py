"""Copies of checkpoints in a store: whole or not counted, made beside the training, and enough to resume from."""

from __future__ import annotations

import dataclasses
import errno
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tests.train.forks import wait_for_steps
from tests.train.test_checkpoint import flat, some_state
from tests.train.test_run import curve, start
from tests.train.toy import make_toy_data, make_toy_model, run_toy, toy_recipe, toy_stage
from tests.train.two_ranks import TwoRanks
from vl2.errors import UserError
from vl2.train import checkpoint_upload
from vl2.train.checkpoint import Checkpoints, Retention, checkpoint_steps, newest_checkpoint
from vl2.train.checkpoint_download import download_newest, prepare_store
from vl2.train.checkpoint_store import MANIFEST, CheckpointStore
from vl2.train.ranks import Ranks
from vl2.train.recipe import RunOptions

TINY = {"x": torch.ones(1)}


@pytest.fixture
def store() -> Iterator[CheckpointStore]:
    MemoryFileSystem.store.clear()
    yield CheckpointStore("memory://bucket/run/")
    MemoryFileSystem.store.clear()


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr(checkpoint_upload, "PAUSE_S", 0.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("toy")
    return make_toy_model(folder / "model"), make_toy_data(folder / "data")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def save_one_by_one(checkpoints: Checkpoints, steps: list[int]) -> list[str]:
    """Save checkpoints, wait for the copy of each, and return what is reported."""
    lines: list[str] = []
    for step in steps:
        checkpoints.save(step, {"x": torch.full((100,), float(step))}, "")
        checkpoints.wait()
        checkpoints.finish_uploads()
        lines += checkpoints.upload_lines()
    return lines


def test_a_copy_comes_back_bit_for_bit(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "a", store=store)
    checkpoints.save(7, some_state(1), "seed = 0\n")
    checkpoints.wait()
    checkpoints.finish_uploads()
    assert checkpoints.upload_lines() == ["the checkpoint of step 7 is in memory://bucket/run/step-00000007 too"]
    assert download_newest(store, tmp_path / "b" / "checkpoints") == 7
    found = newest_checkpoint(tmp_path / "b")
    assert found is not None
    assert contents(found) == contents(tmp_path / "a" / "checkpoints" / "step-00000007")
    loaded = Checkpoints(tmp_path / "b").load(found, some_state(2))
    assert all(torch.equal(a, b) for a, b in zip(flat(loaded), flat(some_state(1)), strict=True))


def test_old_copies_go_by_the_rule_of_the_run_folder(store: CheckpointStore, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=Retention(newest=2, every_steps=4), store=store)
    checkpoints.best_step = 6
    save_one_by_one(checkpoints, [2, 4, 6, 8, 10, 12])
    assert store.begun_steps() == store.steps() == checkpoint_steps(tmp_path) == [4, 6, 8, 10, 12]


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a short file", "a missing file", "a path"])
def test_a_copy_that_is_not_whole_is_passed_over_and_later_removed(
    store: CheckpointStore, tmp_path: Path, damage: str
) -> None:
    save_one_by_one(Checkpoints(tmp_path, store=store), [1, 2])
    files = MemoryFileSystem.store
    folder = "/bucket/run/step-00000002/"
    manifest = files[folder + MANIFEST].getvalue()
    if damage == "no manifest":
        del files[folder + MANIFEST]
    elif damage == "half a manifest":
        files[folder + MANIFEST].truncate(len(manifest) // 2)
    elif damage == "a path":
        MemoryFileSystem().pipe_file(folder + MANIFEST, manifest.replace(b"recipe.toml", b"../../recipe"))
    elif damage == "a short file":
        files[folder + "rank-00000.safetensors"].truncate(100)
    else:
        del files[folder + "state.json"]
    assert store.steps() == [1]
    assert store.begun_steps() == [1, 2]
    assert download_newest(store, tmp_path / "b" / "checkpoints") == 1
    save_one_by_one(Checkpoints(tmp_path, store=store), [3])
    assert store.begun_steps() == store.steps() == [1, 3]


def test_an_empty_store_has_nothing_to_download(store: CheckpointStore, tmp_path: Path) -> None:
    assert download_newest(store, tmp_path) is None


def fail(monkeypatch: pytest.MonkeyPatch, times: int) -> list[str]:
    """Let the store refuse so many files, and return the list of those refused."""
    refused: list[str] = []
    put = CheckpointStore.put

    def refuse(self: CheckpointStore, path: Path, step: int) -> None:
        if len(refused) < times:
            refused.append(path.name)
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        put(self, path, step)

    monkeypatch.setattr(CheckpointStore, "put", refuse)
    return refused


def test_a_store_that_fails_now_and_then_is_tried_again(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = fail(monkeypatch, checkpoint_upload.ATTEMPTS - 1)
    lines = save_one_by_one(Checkpoints(tmp_path, store=store), [1])
    assert len(set(refused)) == 1
    assert (store.steps(), len(lines)) == ([1], 1)


def test_a_store_that_fails_is_reported_in_a_line_and_the_next_checkpoint_is_copied(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, store=store)
    save_one_by_one(checkpoints, [1])
    fail(monkeypatch, 2 * checkpoint_upload.ATTEMPTS)  # the copy is begun once more at the end
    lines = save_one_by_one(checkpoints, [2])
    assert lines == 2 * [
        "cannot copy the checkpoint of step 2 to memory://bucket/run, it is in the run folder only: "
        "Connection reset by peer; the last one there is that of step 1"
    ]
    assert store.steps() == [1]
    save_one_by_one(checkpoints, [3])
    assert store.steps() == [1, 3]
    assert checkpoint_steps(tmp_path) == [1, 2, 3]


def test_training_does_not_wait_for_a_slow_store_and_the_last_checkpoint_gets_there(
    store: CheckpointStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    put = CheckpointStore.put

    def wait_and_put(self: CheckpointStore, path: Path, step: int) -> None:
        assert may_go_on.wait(60)
        put(self, path, step)

    monkeypatch.setattr(CheckpointStore, "put", wait_and_put)
    checkpoints = Checkpoints(tmp_path, keep=Retention(newest=1), store=store)
    for step in (1, 2, 3):
        checkpoints.save(step, TINY, "")
        checkpoints.wait()
    assert checkpoint_steps(tmp_path) == [1, 3], "the first is being copied"
    assert checkpoints.upload_lines() == [
        f"the checkpoint of step {step} is not copied now: memory://bucket/run is still receiving that of step 1"
        for step in (2, 3)
    ]
    assert store.steps() == []
    may_go_on.set()
    checkpoints.finish_uploads()
    assert store.steps() == [3]


def copy_with_two(ranks: Ranks, folder: str, url: str) -> tuple[list[str], list[int], list[str]]:
    """Return the files that this rank copied, the steps then in the store, and the report."""
    copied: list[str] = []
    put = CheckpointStore.put

    class Watched(CheckpointStore):
        def put(self, path: Path, step: int) -> None:
            time.sleep(0.2 * ranks.rank)
            copied.append(path.name)
            put(self, path, step)

    checkpoints = Checkpoints(Path(folder), ranks=ranks, store=Watched(url), most_wait_s=60.0)
    checkpoints.save(4, TINY, "")
    checkpoints.wait()
    checkpoints.finish_uploads()
    ranks.barrier()
    checkpoints.close()
    return sorted(copied), CheckpointStore(url).steps(), checkpoints.upload_lines()


def refuse_on_the_second(ranks: Ranks, folder: str, url: str) -> tuple[list[int], list[str]]:
    class Refusing(CheckpointStore):
        def put(self, path: Path, step: int) -> None:
            if ranks.rank == 1:
                raise PermissionError(errno.EACCES, "Permission denied")
            super().put(path, step)

    checkpoints = Checkpoints(Path(folder), ranks=ranks, store=Refusing(url), most_wait_s=60.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_upload, "PAUSE_S", 0.0)
        checkpoints.save(4, TINY, "")
        checkpoints.wait()
        checkpoints.finish_uploads()
        ranks.barrier()
    return CheckpointStore(url).steps(), checkpoints.upload_lines()


def test_every_rank_copies_what_it_wrote(pair: TwoRanks, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    first, second = pair.run(copy_with_two, str(tmp_path / "run"), url)
    line = f"the checkpoint of step 4 is in {url}/step-00000004 too"
    assert first == (["rank-00000.json", "rank-00000.safetensors", "recipe.toml", "state.json"], [4], [line])
    assert second == (["rank-00001.json", "rank-00001.safetensors"], [4], [])
    saved, copied = tmp_path / "run/checkpoints/step-00000004", tmp_path / "store/step-00000004"
    assert contents(saved) == {name: file for name, file in contents(copied).items() if name != MANIFEST}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name], "no signals are left"


def test_the_first_rank_reports_what_another_could_not_copy(pair: TwoRanks, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    first, second = pair.run(refuse_on_the_second, str(tmp_path / "run"), url)
    line = f"cannot copy the checkpoint of step 4 to {url}, it is in the run folder only: rank 1: Permission denied"
    assert first == ([], [line, line])
    assert second == ([], [])


@pytest.mark.usefixtures("one_thread")
def test_a_run_that_loses_its_machine_during_a_copy_goes_on_from_the_store_bit_for_bit(
    toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "whole", toy_stage(num_steps=8))
    run_toy(recipe)
    url = f"slow://{tmp_path}/store"
    run = dataclasses.replace(recipe.run, folder=str(tmp_path / "killed"), checkpoints=url)
    killed = dataclasses.replace(recipe, run=run)
    (tmp_path / "store.hold").touch()
    life = start(killed, before="import tests.train.slow_file_system")
    wait_for_steps(tmp_path / "killed", 8, [life])  # all steps are taken, though the second copy cannot end
    while life.is_alive and not any(half.stat().st_size == 4 for half in (tmp_path / "store").glob("*/*.safetensors")):
        time.sleep(0.01)
    assert life.kill()[0] < 0
    (tmp_path / "store.hold").unlink()
    store = CheckpointStore(f"file://{tmp_path}/store")
    assert (store.steps(), len(store.begun_steps())) == ([2], 2)
    shutil.rmtree(tmp_path / "killed")

    code, said = start(killed, "--resume", before="import tests.train.slow_file_system").end()
    assert code == 0, said
    assert f"downloaded the checkpoint of step 2 from {url}\n" in said
    assert f"the checkpoint of step 8 is in {url}/step-00000008 too\n" in said
    assert curve(tmp_path / "killed") == [line for line in curve(tmp_path / "whole") if line["step"] > 2]
    weights = [(tmp_path / name / "export" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert store.begun_steps() == store.steps()
    assert store.steps()[-1] == 8


def test_a_run_is_not_started_over_another_in_the_store(
    store: CheckpointStore, toy: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe = toy_recipe(*toy, tmp_path / "run", toy_stage(num_steps=2), checkpoints=store.url, export=False)
    run_toy(recipe)
    assert store.steps() == [2]
    other = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, folder=str(tmp_path / "other")))
    with pytest.raises(UserError, match=r"^memory://bucket/run already has a run: resume it with --resume, or choose"):
        run_toy(other)


def test_a_missing_package_is_one_line_before_anything_is_made(
    toy: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"^cannot reach s3://bucket/run: Install s3fs to access S3$"):
        run_toy(toy_recipe(*toy, tmp_path / "run", checkpoints="s3://bucket/run"))
    assert not (tmp_path / "run").exists()


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = CheckpointStore(f"file://{tmp_path}/file/store")
    with pytest.raises(UserError, match=r"^cannot write to run.checkpoints, .*/.writable: Not a directory$"):
        prepare_store(store, tmp_path / "run", resume=True, say=print)


@pytest.mark.parametrize("inside", ["run", "run/checkpoints"])
def test_a_store_in_the_run_folder_is_refused(tmp_path: Path, inside: str) -> None:
    store = CheckpointStore(f"file://{tmp_path}/{inside}")
    with pytest.raises(UserError, match=r"^run.checkpoints must be outside the run folder .*/run, got file://"):
        prepare_store(store, tmp_path / "run", resume=True, say=print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": "s3://bucket/run"}, r"^run.folder must be a local folder, got s3://bucket/run: a URL goes in run"),
        ({"folder": "run", "checkpoints": "elsewhere"}, r"^run.checkpoints must be a URL .*, got 'elsewhere'$"),
        ({"folder": "run", "checkpoints": "s3://"}, r"^run.checkpoints must be a URL .*, got 's3://'$"),
    ],
)
def test_what_is_no_url_or_should_be_none_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunOptions(**options)
