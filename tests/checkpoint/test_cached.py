"""Checkpoints in the hub's cache: found, measured and deleted, on a cache made here in the hub's layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.hub_cache import COMMIT, add_repo, bytes_of
from vl2.checkpoint.cached import cached_checkpoints, delete_cached, find_cached
from vl2.errors import UserError


def test_only_checkpoints_of_deepseek_vl2_are_found(hub_cache: Path, checkpoint: Path) -> None:
    add_repo(hub_cache, "me/notes-vl2", checkpoint)
    add_repo(hub_cache, "deepseek-ai/deepseek-vl2-small", checkpoint)
    add_repo(hub_cache, "deepseek-ai/deepseek-vl2-tiny", checkpoint)
    add_repo(hub_cache, "google/bert", {"config.json": b'{"model_type": "bert"}'})
    add_repo(hub_cache, "timm/vit", {"config.json": b'{"architecture": "vit"}'})
    add_repo(hub_cache, "me/words", {"config.json": (checkpoint / "config.json").read_bytes()}, kind="datasets")
    found = cached_checkpoints()
    assert [each.name for each in found] == ["tiny", "small", "me/notes-vl2"]
    tiny = found[0]
    assert tiny.hub_id == "deepseek-ai/deepseek-vl2-tiny"
    assert tiny.folder == tiny.repo_folder / "snapshots" / COMMIT
    assert tiny.bytes_on_disk == bytes_of(checkpoint)
    assert tiny.is_complete


def test_there_may_be_no_cache(hub_cache: Path) -> None:
    assert cached_checkpoints() == []
    with pytest.raises(UserError, match=r"no checkpoint tiny in the cache .*: it holds none"):
        find_cached("tiny")


def test_a_stopped_download_is_incomplete_and_its_rest_counts(hub_cache: Path, checkpoint: Path) -> None:
    config = (checkpoint / "config.json").read_bytes()
    repo = add_repo(hub_cache, "deepseek-ai/deepseek-vl2-tiny", {"config.json": config})
    (repo / "blobs" / "abc.incomplete").write_bytes(b"x" * 1000)
    (found,) = cached_checkpoints()
    assert not found.is_complete
    assert found.bytes_on_disk == len(config) + 1000
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    add_repo(hub_cache, "me/half", {"config.json": config, "model.safetensors.index.json": index})
    assert not cached_checkpoints()[1].is_complete


def test_the_main_branch_is_what_is_used(hub_cache: Path, checkpoint: Path) -> None:
    add_repo(hub_cache, "me/vl2", checkpoint, commit="a" * 40, ref="main")
    add_repo(hub_cache, "me/vl2", checkpoint, commit="b" * 40, ref="old")
    (found,) = cached_checkpoints()
    assert found.commits == ("a" * 40, "b" * 40)
    assert found.folder.name == "a" * 40
    assert found.bytes_on_disk == bytes_of(checkpoint)  # the revisions share their files


def test_deleting_takes_all_revisions_and_nothing_else(hub_cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    add_repo(hub_cache, "me/vl2", checkpoint, commit="a" * 40, ref="main")
    add_repo(hub_cache, "me/vl2", checkpoint, commit="b" * 40, ref="old")
    other = add_repo(hub_cache, "deepseek-ai/deepseek-vl2-tiny", checkpoint)
    beside = bytes_of(other)
    delete_cached(find_cached("me/vl2"))
    assert [each.name for each in cached_checkpoints()] == ["tiny"]
    assert not (hub_cache / "models--me--vl2").exists()
    assert bytes_of(other) == beside


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links")
def test_nothing_outside_the_cache_is_deleted(hub_cache: Path, checkpoint: Path, tmp_path: Path) -> None:
    elsewhere = add_repo(tmp_path / "disk", "me/vl2", checkpoint)
    hub_cache.mkdir(exist_ok=True)
    (hub_cache / elsewhere.name).symlink_to(elsewhere)
    with pytest.raises(UserError, match=r"is not in the cache .*: nothing was deleted"):
        delete_cached(find_cached("me/vl2"))
    (hub_cache / elsewhere.name).unlink()
    # A file of a checkpoint that leads elsewhere: the link goes, and what it leads to stays.
    repo = add_repo(hub_cache, "me/linked", checkpoint)
    kept = tmp_path / "kept.safetensors"
    kept.write_bytes(b"mine")
    (repo / "snapshots" / COMMIT / "more.safetensors").symlink_to(kept)
    delete_cached(find_cached("me/linked"))
    assert not repo.exists()
    assert kept.read_bytes() == b"mine"


def test_other_models_are_not_this_commands_to_delete(hub_cache: Path, checkpoint: Path) -> None:
    add_repo(hub_cache, "google/bert", {"config.json": b'{"model_type": "bert"}'})
    add_repo(hub_cache, "me/vl2", checkpoint)
    with pytest.raises(
        UserError, match="google/bert is not a DeepSeek-VL2 checkpoint: `hf cache rm model/google/bert`"
    ):
        find_cached("google/bert")
    with pytest.raises(UserError, match=r"no checkpoint base in the cache .*: in it are me/vl2"):
        find_cached("base")
