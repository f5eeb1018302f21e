"""What is known of the released sizes, and how a checkpoint is recognized. No weights."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vl2.checkpoint.safetensors_file import StoredTensor
from vl2.config import preset
from vl2.verify.subject import VOCABULARIES, Subject, label_of, nearest_size
from vl2.verify.tensors import check_tensors, expected_shapes

from ..checkpoint.test_hub import WEIGHTS, environment
from ..checkpoint.test_hub import hub as hub
from ..reference import CHECKPOINTS

HANGS_S = 240.0  # a whole run in a process of its own, on a busy machine


def subject_of(size: str, folder: Path) -> Subject:
    (folder / "config.json").write_text(json.dumps(preset(size).to_dict()))
    return Subject.of(str(folder), folder)


def headers(size: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            path=Path("a.safetensors"),
            dtype=dtype,
            shape=shape,
            offset=0,
            nbytes=torch.Size(shape).numel() * dtype.itemsize,
        )
        for name, shape in expected_shapes(preset(size)).items()
    }


# The publisher's page gives 3.37, 16.1 and 27.5 billion parameters, and 6.74 GB for tiny.
@pytest.mark.parametrize(("size", "billions"), [("tiny", 3.37), ("small", 16.1), ("base", 27.5)])
def test_the_headers_of_a_whole_released_size_pass_and_one_fault_is_found(size, billions, tmp_path):
    subject = subject_of(size, tmp_path)
    assert subject.size == size
    tensors = headers(size)
    checks = {check.name: check for check in check_tensors(subject, tensors)}
    assert {check.verdict for check in checks.values()} == {"pass"}
    parameters = int(checks["size"].found.split()[0].replace(",", ""))
    assert parameters / 1e9 == pytest.approx(billions, rel=0.004)
    experts = [name for name in tensors if ".experts.7." in name]
    dropped = {name: tensor for name, tensor in tensors.items() if name != experts[0]}
    checks = {check.name: check for check in check_tensors(subject, dropped)}
    assert f"missing: {experts[0]}" in checks["names"].found


def test_a_released_size_must_be_bfloat16_but_for_the_bias_of_experts(tmp_path):
    subject, tensors = subject_of("base", tmp_path), headers("base")
    exact = headers("base", torch.float32)
    biases = {name: tensor for name, tensor in exact.items() if name.endswith("e_score_correction_bias")}
    assert biases
    checks = {check.name: check for check in check_tensors(subject, {**tensors, **biases})}
    assert checks["types"].verdict == "pass"
    checks = {
        check.name: check for check in check_tensors(subject, {**tensors, "image_newline": exact["image_newline"]})
    }
    assert checks["types"].verdict == "fail"
    assert "image_newline is float32, expected bfloat16" in checks["types"].found


def test_special_tokens_have_the_ids_that_users_logs_show():
    assert VOCABULARIES["tiny"].ids["<image>"] == VOCABULARIES["base"].ids["<image>"] == 128815
    assert VOCABULARIES["small"].ids["<image>"] == 100003
    for size, first, user in (("tiny", 128816, 128821), ("base", 128816, 128821), ("small", 100004, 100009)):
        ids = VOCABULARIES[size].ids
        tags = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
        assert [ids[tag] for tag in tags] == list(range(first, first + 5))
        assert (ids["<|User|>"], ids["<|Assistant|>"]) == (user, user + 1)
        config = preset(size).language_config
        assert ids["<｜begin▁of▁sentence｜>"] == config.bos_token_id
        assert ids["<｜end▁of▁sentence｜>"] == config.eos_token_id
        assert VOCABULARIES[size].num_ids <= config.vocab_size


@pytest.mark.parametrize("size", ["nano", "tiny", "small", "base"])
def test_a_preset_is_its_own_nearest(size):
    assert nearest_size(preset(size)) == (size, 0)


@pytest.mark.parametrize("name", ["tiny", "small", "base"])
def test_a_toy_of_no_released_size_is_said_to_be_one_and_checked_by_itself(verify, name):
    report = verify(CHECKPOINTS / name)
    assert report.ran.code == 0, report.ran.out
    assert report.page["size"] is None
    assert report.verdict("config.json") == "not checked"
    assert "of no released size" in report.find("config.json")["found"]
    assert report.verdict("names") == report.verdict("chat template") == report.verdict("values") == "pass"
    assert report.verdict("bfloat16 = float32") == "pass"


def test_the_built_in_model_passes(verify):
    report = verify("nano")
    assert report.ran.code == 0, report.ran.out
    assert (report.page["model"], report.page["size"]) == ("nano", "nano")
    assert report.failed == []


def test_a_checkpoint_of_the_hub_is_called_by_its_id_and_a_folder_by_its_name(tmp_path):
    cached = tmp_path / "models--deepseek-ai--deepseek-vl2-tiny" / "snapshots" / ("a1b2" * 10)
    cached.mkdir(parents=True)
    assert label_of("tiny", cached) == "deepseek-ai/deepseek-vl2-tiny at a1b2a1b2a1b2"
    assert label_of(str(tmp_path / "mine"), tmp_path / "mine") == "folder mine"
    subject = Subject.of("deepseek-ai/deepseek-vl2-tiny", cached)
    # Its name promises a size, so another config.json in it is a fault and not another model.
    assert (subject.named_size, subject.size) == ("tiny", "tiny")
    (cached / "config.json").write_text(json.dumps(preset("small").to_dict()))
    from vl2.verify.config_files import check_config

    check = check_config(Subject.of("deepseek-ai/deepseek-vl2-tiny", cached))
    assert check.verdict == "fail"
    assert "differ from tiny" in check.found


def test_quick_on_the_hub_downloads_no_weights(hub, tmp_path):
    program = "from vl2.cli.main import main; main()"
    command = [sys.executable, "-c", program, "verify", "org/toy", "--quick", "--device", "cpu"]
    env = environment(hub.url, tmp_path)
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "org/toy at aaaaaaaaaaaa" in done.stdout
    assert WEIGHTS not in {name for name, _ in hub.fetched}
    assert "| weight files and index | not checked |" in done.stdout
    whole = subprocess.run(
        [word for word in command if word != "--quick"],
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S,
    )  # fmt: skip
    assert whole.returncode == 0, whole.stdout + whole.stderr
    assert "| weight files and index | pass |" in whole.stdout
    assert WEIGHTS in {name for name, _ in hub.fetched}


def test_nothing_is_downloaded_where_that_is_forbidden(hub, tmp_path):
    program = "from vl2.cli.main import main; main()"
    command = [sys.executable, "-c", program, "verify", "org/toy", "--no-download"]
    env = environment(hub.url, tmp_path)
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=HANGS_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert "is not complete in the local cache" in done.stderr
    assert hub.fetched == []


def test_a_quantized_folder_is_loaded_as_it_is_and_the_page_says_so(vl2, verify, tmp_path):
    assert vl2("quantize", "nano", tmp_path / "int4", "--quiet").code == 0
    report = verify(tmp_path / "int4")
    assert report.ran.code == 0, report.ran.out
    assert report.page["held"] == "int4, the rest in bfloat16"
    assert "quantized to int4" in report.find("names, shapes, types")["found"]
    assert report.verdict("int4 = float32") == "not checked"
    assert report.verdict("cached = read at once, uncached, bfloat16") == "pass"


def test_more_memory_than_is_allowed_is_not_taken(verify, correct):
    report = verify(correct, "--memory", "50MB")
    reasons = [check["found"] for check in report.page["checks"] if check["name"] == "all of it"]
    assert len(reasons) == 3
    assert all(reason.startswith("needs ") and "and 0.05 GB are allowed" in reason for reason in reasons)
