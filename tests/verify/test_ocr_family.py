"""Checkpoints of the DeepSeek-OCR family are verified as DeepSeek-VL2's are, and each fault is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.ocr.golden import toy_folder, toy_vlm
from tests.verify.conftest import change_json, change_tensors
from tests.verify.test_released import headers
from vl2.checkpoint.toy_checkpoint import toy_config, write_toy_checkpoint
from vl2.config import OCR_PRESETS, preset
from vl2.model import Cache
from vl2.verify import agreement
from vl2.verify.config_files import check_config
from vl2.verify.subject import OCR_HUB_IDS, VOCABULARIES, Subject, nearest_size, processor_settings
from vl2.verify.tensors import check_tensors

FAMILY = pytest.mark.parametrize("name", OCR_PRESETS)
needs_transformers = pytest.mark.skipif(find_spec("transformers.models.unlimited_ocr") is None, reason="an older one")


@pytest.fixture
def damaged_toy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder("unlimited-ocr"), tmp_path / "damaged"))


def subject_of(name: str, folder: Path, **changes: object) -> Subject:
    (folder / "config.json").write_text(json.dumps({**preset(name).to_dict(), **changes}))
    return Subject.of(str(folder), folder)


@pytest.mark.parametrize("name", ["unlimited-ocr", "deepseek-ocr-2"])
def test_a_correct_checkpoint_passes_and_its_logits_are_those_of_transformers(verify, name: str) -> None:
    report = verify(toy_folder(name))
    assert report.ran.code == 0, report.ran.out
    assert report.failed == []
    assert "of no released size" in report.find("config.json")["found"]
    for check in ("names", "shapes", "chat template", "processor_config.json", "values", "bfloat16 = float32"):
        assert report.verdict(check) == "pass", check
    assert "no answers of" in report.find("all of it")["found"]
    behind = [check["name"] for check in report.page["checks"] if "behind 16 tokens of answer" in check["name"]]
    assert len(behind) == (2 if name == "unlimited-ocr" else 0)
    compared = [check for check in report.page["checks"] if check["name"].startswith("vl2 = transformers")]
    expected = "pass" if find_spec("transformers.models.unlimited_ocr") else "not checked"
    assert [check["verdict"] for check in compared] == [expected]
    assert report.verdict("decoding") == "measured"


@FAMILY
def test_the_headers_of_a_released_checkpoint_pass_and_faults_are_named(name: str, tmp_path: Path) -> None:
    subject, tensors = subject_of(name, tmp_path), headers(name)
    assert (subject.size, subject.kind) == (name, preset(name).kind)
    assert check_config(subject).verdict == "pass"
    assert {check.verdict for check in check_tensors(subject, tensors)} == {"pass"}
    lost, wrong = "model.sam_model.net_3.weight", "model.layers.3.mlp.experts.7.gate_proj.weight"
    del tensors[lost]
    tensors[wrong] = replace(tensors[wrong], shape=(1, *tensors[wrong].shape))
    checks = {check.name: check for check in check_tensors(subject, tensors)}
    assert f"1 missing, 0 not expected, of {len(tensors) + 1:,}: missing: {lost}" in checks["names"].found
    assert f"{wrong} is [1, 896, 1280], not [896, 1280]" in checks["shapes"].found


@FAMILY
def test_special_tokens_have_the_ids_of_the_released_code(name: str) -> None:
    """The guard of the released programs allows 128821 and 128822, and calls them `<td>` and `</td>`."""
    ids = VOCABULARIES[name].ids
    assert (ids["<td>"], ids["</td>"]) == (128821, 128822)
    assert "<|User|>" not in ids
    config = preset(name).language_config
    assert ids["<｜begin▁of▁sentence｜>"] == config.bos_token_id
    assert ids["<｜end▁of▁sentence｜>"] == config.eos_token_id


@needs_transformers
@pytest.mark.parametrize("module", ["unlimited_ocr.configuration_unlimited_ocr.UnlimitedOcrConfig",
                                    "deepseek_ocr2.configuration_deepseek_ocr2.DeepseekOcr2Config"])  # fmt: skip
def test_the_image_token_is_that_of_transformers(module: str) -> None:
    from importlib import import_module

    path, _, kind = module.rpartition(".")
    config = getattr(import_module(f"transformers.models.{path}"), kind)()
    assert config.image_token_id == VOCABULARIES["deepseek-ocr"].ids["<image>"]


@FAMILY
def test_a_preset_is_its_own_nearest_among_its_kind(name: str) -> None:
    assert nearest_size(preset(name)) == (name, 0)
    assert nearest_size(toy_config(name))[0] == name
    assert processor_settings(name).patch_size == 16


def test_another_value_is_a_fault_unless_the_released_one_is_not_known(tmp_path: Path) -> None:
    values = preset("unlimited-ocr").to_dict()
    vision = {**values["vision_config"], "width": {**values["vision_config"]["width"]}}
    vision["width"]["sam_vit_b"] = {**vision["width"]["sam_vit_b"], "window_size": 7}
    check = check_config(subject_of("unlimited-ocr", tmp_path, vision_config=vision))
    assert check.verdict == "fail"
    assert "vision_config.sam.window_size: 7, unlimited-ocr has 14" in check.details
    check = check_config(subject_of("unlimited-ocr", tmp_path, sliding_window=64))
    assert check.verdict == "pass"
    assert "sliding_window: 64, 128 was assumed (the released value is not known here)" in check.details


def test_a_name_that_promises_another_model_is_a_fault(tmp_path: Path) -> None:
    cached = tmp_path / "models--deepseek-ai--DeepSeek-OCR" / "snapshots" / ("a1b2" * 10)
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(preset("tiny").to_dict()))
    subject = Subject.of("deepseek-ai/DeepSeek-OCR", cached)
    assert (subject.size, subject.kind) == ("deepseek-ocr", "DeepSeek-OCR")
    assert check_config(subject).found == "it describes DeepSeek-VL2, and the name is of DeepSeek-OCR"
    assert set(OCR_HUB_IDS.values()) == set(OCR_PRESETS)


def test_settings_that_make_other_tokens_are_named(verify, damaged_toy: Path) -> None:
    change_json(damaged_toy / "processor_config.json", lambda values: values.update(downsample_ratio=2))
    change_json(damaged_toy / "config.json", lambda values: values["language_config"].update(bos_token_id=5))
    report = verify(damaged_toy, "--quick")
    assert "patch_size * downsample_ratio: 32, config.json says 64" in report.find("processor_config.json")["found"]
    assert "is 0, config.json says 5" in report.find("special tokens")["found"]


def test_a_prompt_that_is_written_otherwise_is_found(verify, monkeypatch: pytest.MonkeyPatch) -> None:
    from vl2.process import chat_template

    write = chat_template._write_pieces

    def write_stripped(row, pieces, *rest, **named) -> None:
        write(row, tuple(p.strip() if isinstance(p, str) else p for p in pieces), *rest, **named)

    monkeypatch.setattr(chat_template, "_write_pieces", write_stripped)
    report = verify(toy_folder("deepseek-ocr"), "--quick")
    assert report.failed == ["chat template"]
    # Bos and 273 visual tokens are the same; the line break is missing.
    assert "a page for Markdown: ids differ from position 274 on" in report.find("chat template")["found"]


def test_a_weight_that_is_not_finite_is_named(verify, damaged_toy: Path) -> None:
    name = "model.sam_model.blocks.1.attn.rel_pos_h"
    change_tensors(damaged_toy / "model.safetensors", lambda tensors: tensors[name].fill_(float("nan")))
    report = verify(damaged_toy)
    assert report.failed == ["values"]
    assert report.find("values")["found"] == f"{name} holds NaN or infinity"


def test_a_cache_that_does_not_forget_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = toy_vlm("tiny", "unlimited-ocr")
    sample = agreement.make_test_sample(vlm)

    def verdicts() -> dict[str, str]:
        whole = agreement.answer_greedily(vlm, sample, agreement.FIRST_TOKENS)
        return {check.name: check.verdict for check in agreement.check_agreement(vlm, sample, whole)}

    name = "cached = read at once, behind 16 tokens of answer, float32"
    assert set(verdicts().values()) == {"pass"}
    monkeypatch.setattr(Cache, "make_room", lambda *_: None)
    assert {key for key, verdict in verdicts().items() if verdict == "fail"} == {name}


@needs_transformers
def test_other_weights_than_those_of_the_files_differ_from_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write_toy_checkpoint(folder, toy_config("deepseek-ocr-2"))
    vlm = toy_vlm("small", "deepseek-ocr-2")
    sample = agreement.make_test_sample(vlm)
    whole = agreement.answer_greedily(vlm, sample, 4)
    image_id = vlm.processor.tokenizer.image_id

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.qwen2_model.query_768.weight"] += 0.5

    assert agreement.check_transformers(Subject.of("x", folder), sample, whole, image_id).verdict == "pass"
    change_tensors(folder / "model.safetensors", change)
    check = agreement.check_transformers(Subject.of("x", folder), sample, whole, image_id)
    assert (check.name, check.verdict) == ("vl2 = transformers, float32", "fail")
    change_tensors(folder / "model.safetensors", lambda tensors: tensors.pop("model.layers.2.mlp.gate.weight"))
    check = agreement.check_transformers(Subject.of("x", folder), sample, whole, image_id)
    assert "transformers does not read this checkpoint: 1 tensors do not fit, first " in check.found
    assert "layers.2.mlp.gate" in check.found
