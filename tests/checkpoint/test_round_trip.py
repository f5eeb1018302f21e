"""Saving and loading: bit-identical, under the released names, and strict about what is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference import CHECKPOINTS, SIZES
from vl2.checkpoint import LoadOptions, load_model, save_model
from vl2.checkpoint.folder import INDEX
from vl2.config import ModelConfig
from vl2.errors import UserError
from vl2.infer.vlm import load


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINTS / "base", tmp_path / "copy"))


@pytest.mark.parametrize("max_shard_bytes", [400_000, 5_000_000_000])
@pytest.mark.parametrize("size", SIZES)
def test_what_is_saved_equals_what_was_loaded(size: str, max_shard_bytes: int, tmp_path: Path) -> None:
    model = load_model(CHECKPOINTS / size)
    save_model(model, tmp_path / "saved", max_shard_bytes=max_shard_bytes)
    before, after = all_tensors(CHECKPOINTS / size), all_tensors(tmp_path / "saved")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    files = list((tmp_path / "saved").glob("*.safetensors"))
    assert (len(files) > 1) == (max_shard_bytes < 1_000_000)
    assert (tmp_path / "saved" / INDEX).is_file() == (len(files) > 1)

    again = load_model(tmp_path / "saved")
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("size", SIZES)
def test_a_saved_folder_has_the_released_files_and_settings(size: str, tmp_path: Path) -> None:
    load(CHECKPOINTS / size, device="cpu").save(tmp_path / "saved")
    for name in ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        saved = json.loads((tmp_path / "saved" / name).read_text(encoding="utf-8"))
        assert saved == json.loads((CHECKPOINTS / size / name).read_text(encoding="utf-8")), name
    question = {"max_new_tokens": 4}
    first = load(CHECKPOINTS / size, device="cpu").chat("Hello", **question)
    assert load(tmp_path / "saved", device="cpu").chat("Hello", **question).token_ids == first.token_ids


def test_saving_in_another_type_says_so_in_the_config(tmp_path: Path) -> None:
    save_model(load_model(CHECKPOINTS / "base", LoadOptions(dtype=torch.bfloat16)), tmp_path / "half")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    tensors = all_tensors(tmp_path / "half")
    biases = {name for name in tensors if name.endswith("e_score_correction_bias")}
    assert len(biases) == 3
    assert {t.dtype for name, t in tensors.items() if name not in biases} == {torch.bfloat16}
    original = all_tensors(CHECKPOINTS / "base")
    assert all(torch.equal(tensors[name], original[name]) for name in biases)  # float32 under any cast


def test_saving_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        save_model(load_model(CHECKPOINTS / "tiny"), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        save_model(load_model(CHECKPOINTS / "tiny"), tmp_path / "out", extra_files=[tmp_path / "absent.json"])
    assert list(tmp_path.iterdir()) == []


def rewrite(folder: Path, change: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["language.model.layers.2.mlp.experts.3.up_proj.weight"]
    elif change == "extra":
        tensors["language.model.layers.9.strange.weight"] = torch.zeros(2)
    elif change == "misshapen":
        tensors["projector.layers.0.bias"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing", "language.model.layers.2.mlp.experts.3.up_proj.weight"),
        ("extra", "language.model.layers.9.strange.weight"),
        ("misshapen", r"projector.layers.0.bias is \[5\], config.json says \[72\]"),
    ],
)
def test_loading_is_strict_and_names_the_tensor(copied: Path, change: str, named: str) -> None:
    rewrite(copied, change)
    with pytest.raises(UserError, match=named):
        load_model(copied)


def test_a_file_that_was_cut_short_is_refused(copied: Path) -> None:
    file = copied / "model.safetensors"
    whole = file.read_bytes()
    for keep in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"cut short|not a safetensors"):
            load_model(copied)


@pytest.mark.parametrize(
    "noise", [b"\xff" * 64, b'{"a": 1}' * 20, (20).to_bytes(8, "little") + b"{no json at all}    "]
)
def test_a_file_of_noise_is_refused(copied: Path, noise: bytes) -> None:
    (copied / "model.safetensors").write_bytes(noise)
    with pytest.raises(UserError):
        load_model(copied)


def test_pickled_weights_are_never_read(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="only safetensors"):
        load_model(copied)


def test_shards_without_their_index_are_read(copied: Path, tmp_path: Path) -> None:
    model = load_model(copied)
    save_model(model, tmp_path / "sharded", max_shard_bytes=400_000)
    (tmp_path / "sharded" / INDEX).unlink()
    assert torch.equal(load_model(tmp_path / "sharded").language.lm_head.weight, model.language.lm_head.weight)
    sorted((tmp_path / "sharded").glob("*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match=r"lacks \d+ tensors"):
        load_model(tmp_path / "sharded")


def test_a_missing_shard_is_named(copied: Path, tmp_path: Path) -> None:
    save_model(load_model(copied), tmp_path / "sharded", max_shard_bytes=400_000)
    victim = sorted((tmp_path / "sharded").glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        load_model(tmp_path / "sharded")


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": {"a": "../secret.safetensors"}}', '{"weight_map": {"a": 3}}']
)
def test_a_damaged_index_is_refused(copied: Path, index: str) -> None:
    (copied / INDEX).write_text(index)
    with pytest.raises(UserError):
        load_model(copied)


def test_weights_are_cast_while_they_are_read(tmp_path: Path) -> None:
    model = load_model(CHECKPOINTS / "small", LoadOptions(dtype=torch.float16))
    source = load_file(CHECKPOINTS / "small" / "model.safetensors")
    assert torch.equal(model.image_newline, source["image_newline"].half())
    assert model.dtype == torch.float16


def test_progress_reaches_the_whole() -> None:
    seen: list[tuple[int, int]] = []
    load_model(CHECKPOINTS / "tiny", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 1_000_000


def test_the_config_is_written_back_as_it_was_read() -> None:
    for size in SIZES:
        raw = json.loads((CHECKPOINTS / size / "config.json").read_text())
        assert ModelConfig.from_dict(raw).to_dict() == raw


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks at what is mapped as Linux shows it")
@pytest.mark.parametrize("weights", ["auto", "int8"])
@torch.no_grad()
def test_the_token_table_views_its_file_and_what_is_written_to_it_stays_in_the_process(
    weights: str, copied: Path
) -> None:
    stored = all_tensors(copied)["language.model.embed_tokens.weight"].clone()
    model = load(copied, device="cpu", dtype=str(stored.dtype).removeprefix("torch."), weights=weights).model
    table = model.language.model.embed_tokens.weight
    assert torch.equal(table, stored)
    files = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(copied) in line]
    first, end = (int(bound, 16) for bound in files[0].split()[0].split("-"))
    assert len(files) == 1
    assert first <= table.data_ptr() < end
    table.mul_(2)
    assert torch.equal(table, stored * 2)
    assert torch.equal(all_tensors(copied)["language.model.embed_tokens.weight"], stored)
    cast = load(copied, device="cpu", dtype="float16", weights=weights).model.language.model.embed_tokens.weight
    assert torch.equal(cast, stored.half())
    assert len([line for line in Path("/proc/self/maps").read_text().splitlines() if str(copied) in line]) == 1
