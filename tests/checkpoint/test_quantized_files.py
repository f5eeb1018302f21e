"""Quantized files: written module by module, mapped, equal to quantizing in memory, and strict about what is read."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference import CHECKPOINTS, SIZES
from vl2.checkpoint import LoadOptions, load_model
from vl2.checkpoint.folder import INDEX, Checkpoint
from vl2.checkpoint.load import read_model
from vl2.checkpoint.policy import Policy
from vl2.checkpoint.quantization_config import QUANTIZED
from vl2.checkpoint.safetensors_file import read_header
from vl2.checkpoint.write import quantize_checkpoint
from vl2.errors import UserError
from vl2.infer.vlm import load
from vl2.model import VL2
from vl2.quant.formats import KINDS
from vl2.quant.quantize_model import quantize_model, scheme_named


def mapped(folder: Path) -> VL2:
    return load_model(folder, LoadOptions(only_answers=True))


@torch.inference_mode()
def test_a_model_can_be_quantized_while_it_is_loaded_in_inference_mode() -> None:
    assert not any(t.is_inference() for t in load("nano", weights="int4").model.state_dict().values())


def assert_equal(ours: VL2, theirs: VL2) -> None:
    for (name, a), (other, b) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert name == other
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


@pytest.fixture(scope="module")
def base4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base-like checkpoint in int4, in several files: latent attention, sigmoid routing, expert biases."""
    folder = tmp_path_factory.mktemp("quantized") / "base4"
    quantize_checkpoint(CHECKPOINTS / "base", folder, max_shard_bytes=200_000)
    return folder


@pytest.fixture
def copied(base4: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base4, tmp_path / "copy"))


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_files_hold_what_quantizing_in_memory_gives(size: str, weights: str, tmp_path: Path) -> None:
    quantize_checkpoint(CHECKPOINTS / size, tmp_path / "out", weights=weights)
    in_memory = load_model(CHECKPOINTS / size)
    quantize_model(in_memory, scheme_named(weights))
    assert_equal(mapped(tmp_path / "out"), in_memory)
    assert_equal(load_model(CHECKPOINTS / size, LoadOptions(only_answers=True, weights=weights)), in_memory)


def test_answers_are_those_of_quantizing_while_loading(base4: Path) -> None:
    question = {"max_new_tokens": 8}
    while_loading = load(CHECKPOINTS / "base", device="cpu", weights="int4").chat("Hello", **question)
    from_files = load(base4, device="cpu").chat("Hello", **question)
    assert from_files.token_ids == while_loading.token_ids
    assert len(from_files.token_ids) > 0


def test_the_files_are_ordinary_safetensors_in_several_shards(base4: Path) -> None:
    files = sorted(base4.glob("*.safetensors"))
    assert len(files) > 3
    ours = mapped(base4).state_dict()
    read: dict[str, torch.Tensor] = {}
    for file in files:
        read.update(load_file(file))
    assert read.keys() == {name.replace("view_separator", "view_seperator") for name in ours}
    assert all(torch.equal(read[name.replace("view_separator", "view_seperator")], t) for name, t in ours.items())
    assert set(json.loads((base4 / INDEX).read_text())["weight_map"]) == set(read)


def test_tensors_begin_where_wide_loads_want_them(base4: Path) -> None:
    for file in base4.glob("*.safetensors"):
        (length,) = struct.unpack("<Q", file.read_bytes()[:8])
        assert (length + 8) % 4096 == 0
        for tensor in read_header(file).values():
            assert tensor.offset % (64 if tensor.nbytes % 64 == 0 else tensor.dtype.itemsize) == 0


def test_the_rest_of_the_folder_is_copied_and_says_how_it_is_quantized(base4: Path) -> None:
    source = CHECKPOINTS / "base"
    for file in source.glob("*.json"):
        if file.name != "config.json" and not file.name.endswith(".index.json"):
            assert (base4 / file.name).read_bytes() == file.read_bytes()
    config = json.loads((base4 / "config.json").read_text())
    recorded = config.pop(QUANTIZED)
    assert recorded["weights"] == "int4"
    assert recorded["parts"]["layers"] == "int4"
    assert config == json.loads((source / "config.json").read_text())
    assert [p.name for p in base4.parent.iterdir()] == [base4.name]  # nothing is left beside it


def test_a_mapped_model_shares_its_bytes_with_the_file(copied: Path) -> None:
    model = mapped(copied)
    expert = model.language.model.layers[1].mlp.experts
    name = "language.model.layers.1.mlp.experts.down_codes"
    stored = next(t for file in copied.glob("*.safetensors") for n, t in read_header(file).items() if n == name)
    before = expert.down_codes.flatten()[0].item()
    with stored.path.open("r+b") as file:
        file.seek(stored.offset)
        file.write(bytes([before ^ 0xFF]))
    assert expert.down_codes.flatten()[0].item() == before ^ 0xFF
    # What is written to the tensor stays in this process.
    expert.down_codes.fill_(3)
    with stored.path.open("rb") as file:
        file.seek(stored.offset)
        assert file.read(1) == bytes([before ^ 0xFF])


def test_reading_into_memory_gives_the_mapped_model(base4: Path) -> None:
    policy = Policy(dtype=torch.float32, device=torch.device("cpu"), in_place="nothing")
    assert_equal(read_model(Checkpoint.of(base4), policy)[0], mapped(base4))


def test_what_is_not_quantized_takes_another_type(base4: Path) -> None:
    model = load(base4, device="cpu", dtype="bfloat16").model
    assert model.dtype == torch.bfloat16
    assert model.language.model.layers[1].mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert model.language.lm_head.codes.dtype == torch.uint8


def test_a_quantized_checkpoint_is_not_quantized_again(base4: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quantized to int4 already"):
        quantize_checkpoint(base4, tmp_path / "again")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        quantize_checkpoint(CHECKPOINTS / "tiny", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"needs .* GB, and .* has 0.00 GB free"):
        quantize_checkpoint(CHECKPOINTS / "tiny", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        quantize_checkpoint(CHECKPOINTS / "tiny", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int8, int4, got 'int3'"):
        quantize_checkpoint(CHECKPOINTS / "tiny", tmp_path / "out", weights="int3")


def test_progress_reaches_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    quantize_checkpoint(CHECKPOINTS / "tiny", tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 1_000_000


def test_files_that_were_cut_short_are_refused(copied: Path) -> None:
    file = sorted(copied.glob("*.safetensors"))[1]
    whole = file.read_bytes()
    for keep in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:keep])
        with pytest.raises(UserError, match=r"cut short|not a safetensors"):
            load(copied, device="cpu")


def rewrite(folder: Path, change: str) -> str:
    """Damage the file that holds the experts of a layer; return what the error must say."""
    name = "language.model.layers.1.mlp.experts.down_codes"
    path = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(path)
    if change == "missing":
        del tensors[name]
        expected = f"lacks 1 tensors: {name}"
    elif change == "extra":
        tensors["language.strange.codes"] = torch.zeros(2)
        expected = "language.strange.codes"
    elif change == "misshapen":
        tensors[name] = tensors[name][1:].clone()
        expected = f"{name} is [{len(tensors[name])}, "
    else:
        tensors[name] = tensors[name].view(torch.int8)
        expected = f"holds {name} as torch.int8, and torch.uint8 is needed"
    save_file(tensors, path)
    return expected


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "retyped"])
def test_damage_is_named_in_one_line(copied: Path, change: str) -> None:
    expected = rewrite(copied, change)
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        load(copied, device="cpu")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(copied: Path) -> None:
    victim = sorted(copied.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(UserError, match=victim.name):
        load(copied, device="cpu")


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized by 'bitsandbytes'"),
        ("int4", "quantized by 'int4'"),
        ({"quant_method": "vl2", "version": 2, "group_size": 32}, "version 2"),
        ({"quant_method": "vl2", "version": 1, "group_size": 32, "weights": "int4"}, "layers, head, vision, projector"),
        (
            {
                "quant_method": "vl2", "version": 1, "group_size": 32, "weights": "int4",
                "parts": {"layers": "int3", "head": None, "vision": None, "projector": None},
            },
            "int8, int4 or null for layers, got 'int3'",
        ),
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_refused(copied: Path, recorded: object, said: str) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, QUANTIZED: recorded}))
    with pytest.raises(UserError, match=re.escape(said)):
        load(copied, device="cpu")


def test_plain_weights_behind_a_record_are_told_apart(copied: Path) -> None:
    for file in copied.glob("model*"):
        file.unlink()
    shutil.copy(CHECKPOINTS / "base" / "model.safetensors", copied)
    with pytest.raises(UserError, match=r"lacks .* tensors: .*codes"):
        load(copied, device="cpu")


def test_other_loaders_say_that_weights_are_quantized(base4: Path) -> None:
    with pytest.raises(UserError, match="quantized weights, which can only answer"):
        load_model(base4)


def test_a_quantized_folder_keeps_its_form(base4: Path) -> None:
    with pytest.raises(UserError, match="quantized to int4: int8 is made of the plain checkpoint"):
        load(base4, device="cpu", weights="int8")
    assert load(base4, device="cpu", weights="int4").folder == base4


def test_an_adapter_is_not_added_into_quantized_weights(base4: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an adapter is added into plain weights"):
        load(base4, device="cpu", adapter=tmp_path)


def test_a_quantized_model_is_not_saved(base4: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vl2 quantize"):
        load(base4, device="cpu").save(tmp_path / "out")


def test_a_model_says_how_its_weights_are_held(base4: Path) -> None:
    assert load(base4, device="cpu").weights == "int4"
    assert load(CHECKPOINTS / "base", device="cpu", weights="int8").weights == "int8"
    assert load(CHECKPOINTS / "base", device="cpu").weights == "float32"
