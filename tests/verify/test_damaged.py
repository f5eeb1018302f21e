"""A correct checkpoint passes; each damage is found by the check that is about it, and named."""

from __future__ import annotations

import json

import pytest
import torch

from .conftest import change_json, change_tensors, first_file


def test_a_correct_checkpoint_passes(verify, correct):
    report = verify(correct)
    assert report.ran.code == 0, report.ran.out
    assert report.failed == []
    assert report.page["size"] == "nano"
    assert report.page["model"] == "folder random"
    verdicts = {check["name"]: check["verdict"] for check in report.page["checks"]}
    assert verdicts["config.json"] == verdicts["names"] == verdicts["chat template"] == verdicts["values"] == "pass"
    assert verdicts["bfloat16 = float32"] == "pass"
    assert verdicts["decoding"] == "measured"


def test_quick_reads_no_weights_and_finds_what_headers_show(verify, damaged, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("vl2.verify.weight_health.blocks", refuse)
    monkeypatch.setattr("vl2.verify.run_checks.load", refuse)
    assert verify(damaged, "--quick").ran.code == 0

    def drop(tensors):
        del tensors["image_newline"]

    (file,) = [f for f in damaged.glob("*.safetensors") if b'"image_newline"' in f.read_bytes()[:100_000]]
    change_tensors(file, drop)
    report = verify(damaged, "--quick")
    assert report.ran.code == 1
    assert "missing: image_newline" in report.find("names")["found"]
    assert f"image_newline: the index says {file.name}, which does not hold it" in str(
        report.find("weight files and index")
    )


def test_a_tensor_of_another_shape_is_named(verify, damaged):
    def widen(tensors):
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
        names.append(name)
        tensors[name] = torch.cat((tensors[name], tensors[name][:1]))

    names: list[str] = []
    change_tensors(first_file(damaged), widen)
    report = verify(damaged, "--quick")
    assert names[0] in report.find("shapes")["found"]
    assert {"shapes", "size"} <= set(report.failed)


def test_a_tensor_of_whole_numbers_is_named(verify, damaged):
    def round_it(tensors):
        name = next(iter(tensors))
        names.append(name)
        tensors[name] = tensors[name].to(torch.int16)

    names: list[str] = []
    change_tensors(first_file(damaged), round_it)
    assert f"{names[0]} is int16" in verify(damaged, "--quick").find("types")["found"]


def test_a_tensor_that_nobody_expects_is_named(verify, damaged):
    change_tensors(first_file(damaged), lambda tensors: tensors.update(extra=torch.ones(3)))
    found = str(verify(damaged, "--quick").find("names"))
    assert "not expected: extra" in found


def test_a_file_that_was_cut_short_is_named(verify, damaged):
    file = first_file(damaged)
    file.write_bytes(file.read_bytes()[:-1000])
    report = verify(damaged)
    assert report.verdict("weight files and index") == "fail"
    assert f"{file.name} was cut short" in report.find("weight files and index")["found"]
    # Nothing is asked of a model that cannot be right.
    assert {check["verdict"] for check in report.page["checks"] if check["group"].startswith("agreement")} == {
        "not checked"
    }


def test_a_weight_file_that_is_missing_is_named(verify, damaged):
    file = first_file(damaged)
    file.unlink()
    report = verify(damaged, "--quick")
    assert f"{file.name} is named by the index and not there" in report.find("weight files and index")["found"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(verify, damaged, value):
    def spoil(tensors):
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
        names.append(name)
        tensors[name][1, 1] = value

    names: list[str] = []
    change_tensors(first_file(damaged), spoil)
    report = verify(damaged)
    assert report.failed == ["values"]
    assert report.find("values")["found"] == f"{names[0]} holds NaN or infinity"


def test_a_hole_in_a_file_as_a_stopped_download_leaves_it_is_named(verify, damaged):
    # The last tensor of a file, so that a hole in it is the file's end.
    file = first_file(damaged)
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    header.pop("__metadata__", None)
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    start, end = header[last]["data_offsets"]
    file.write_bytes(data[: len(data) - (end - start)] + bytes(end - start))
    report = verify(damaged)
    assert report.failed == ["values"]
    assert last in report.find("values")["found"]
    assert "zeros" in report.find("values")["found"]


def test_bytes_that_are_shifted_are_found(verify, damaged):
    """As in a file that lost one byte and got another at its end: bfloat16 of two halves of numbers."""
    file = first_file(damaged)
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:start] + data[start + 1 :] + b"\x00")
    assert verify(damaged).failed == ["values"]


def test_swapped_special_tokens_are_named(verify, damaged):
    def swap(values):
        ref, end = (next(t for t in values["added_tokens"] if t["content"] == tag) for tag in ("<|ref|>", "<|/ref|>"))
        ref["content"], end["content"] = end["content"], ref["content"]

    change_json(damaged / "tokenizer.json", swap)
    found = str(verify(damaged, "--quick").find("special tokens"))
    assert "<|ref|> is 4090, nano has 4089" in found
    assert "<|/ref|> is 4089, nano has 4090" in found


def test_ids_that_are_written_otherwise_than_they_are_read_are_named(verify, damaged):
    change_json(damaged / "tokenizer.json", lambda values: values["added_tokens"][-1].update(id=5000))
    found = str(verify(damaged, "--quick").find("special tokens"))
    assert "<|Assistant|> is 5000 in tokenizer.json, and 4095 once it is read" in found


def test_an_end_token_that_config_does_not_know_is_named(verify, damaged):
    change_json(damaged / "config.json", lambda values: values["language_config"].update(eos_token_id=7))
    report = verify(damaged, "--quick")
    assert "is 1, config.json says 7" in report.find("special tokens")["found"]
    assert "language_config.eos_token_id: 7, nano has 1" in report.find("config.json")["details"]


def test_a_tokenizer_that_changes_text_is_found(verify, damaged):
    change_json(damaged / "tokenizer.json", lambda values: values.update(normalizer={"type": "Lowercase"}))
    report = verify(damaged, "--quick")
    assert report.failed == ["text to ids and back"]
    assert "The total is 12.50 EUR" in report.find("text to ids and back")["found"]


def test_a_tokenizer_with_more_words_than_the_token_table_has_rows_fails(verify, damaged):
    more = {"id": 4096, "content": "<|more|>", "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True}  # fmt: skip
    change_json(damaged / "tokenizer.json", lambda values: values["added_tokens"].append(more))
    report = verify(damaged, "--quick")
    assert report.failed == ["vocabulary"]
    assert report.find("vocabulary")["found"].startswith("4,097 ids, 4,096 rows in the token table")


def test_another_template_in_our_code_is_found(verify, correct, monkeypatch):
    from vl2.process import chat_template

    write = chat_template._write_pieces

    def write_without_space(row, pieces, *rest, **named):
        write(row, (":", *pieces[1:]) if pieces[0] == ": " else pieces, *rest, **named)

    monkeypatch.setattr(chat_template, "_write_pieces", write_without_space)
    report = verify(correct, "--quick")
    assert report.failed == ["chat template"]
    # Bos, the user's mark and the colon are the same, what follows is not.
    assert "a question: ids differ from position 3 on, ours " in report.find("chat template")["found"]


def test_another_format_of_conversations_is_named(verify, damaged):
    change_json(damaged / "processor_config.json", lambda values: values.update(sft_format="plain"))
    report = verify(damaged, "--quick")
    assert "sft_format must be 'deepseek'" in report.find("chat template")["found"]
    assert "sft_format" in report.find("processor_config.json")["found"]


def test_a_template_in_the_tokenizer_settings_is_shown_and_not_read(verify, damaged):
    (damaged / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ bos_token }}\nUser: x"}))
    check = verify(damaged, "--quick").find("chat_template in tokenizer_config.json")
    assert check["verdict"] == "not checked"
    assert check["details"] == ["{{ bos_token }}", "User: x"]


def test_another_value_of_the_processor_is_named(verify, damaged):
    change_json(damaged / "processor_config.json", lambda values: values.update(image_mean=[0.4, 0.5, 0.5]))
    report = verify(damaged, "--quick")
    assert report.failed == ["processor_config.json"]
    assert "image_mean: (0.4, 0.5, 0.5), nano has (0.5, 0.5, 0.5)" in report.find("processor_config.json")["found"]


def test_a_field_that_shapes_the_model_is_named_and_a_key_that_does_not_is_only_noted(verify, damaged):
    change_json(damaged / "config.json", lambda values: values.update(transformers_version="9.9", architectures=["X"]))
    report = verify(damaged, "--quick")
    assert report.failed == []
    assert "2 other keys differ" in report.find("config.json")["found"]
    change_json(damaged / "config.json", lambda values: values["language_config"].update(rope_theta=500.0))
    report = verify(damaged, "--quick")
    assert report.failed == ["config.json"]
    assert any(
        line.startswith("language_config.rope_theta: 500.0, nano has") for line in report.find("config.json")["details"]
    )


OTHER_TYPE = '{"language_config": {"hidden_size": "x"}, "vision_config": {}, "projector_config": {}}'


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"language_config": 3}', OTHER_TYPE])
def test_a_config_that_cannot_be_read_fails_and_the_rest_is_still_checked(verify, damaged, text):
    (damaged / "config.json").write_text(text)
    report = verify(damaged, "--quick")
    assert report.verdict("config.json") == "fail"
    assert report.verdict("text to ids and back") == "pass"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}, "metadata": []}'])
def test_an_index_that_cannot_be_read_fails(verify, damaged, text):
    (damaged / "model.safetensors.index.json").write_text(text)
    assert verify(damaged, "--quick").verdict("weight files and index") == "fail"


def test_an_index_that_says_another_size_fails(verify, damaged):
    change_json(damaged / "model.safetensors.index.json", lambda values: values["metadata"].update(total_size=12))
    assert "the index says 12 bytes" in verify(damaged, "--quick").find("weight files and index")["found"]


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_missing_file_is_named(verify, damaged, name):
    (damaged / name).unlink()
    report = verify(damaged, "--quick")
    assert report.find("file list")["found"] == f"missing: {name}"


def test_a_folder_without_weights_fails(verify, damaged):
    for file in damaged.glob("*.safetensors"):
        file.unlink()
    report = verify(damaged)
    assert report.find("file list")["found"] == "missing: the weights (*.safetensors)"
    assert report.ran.code == 1
