"""Answers that end early, limits beyond the model's, and what a model may be called."""

from __future__ import annotations

import dataclasses
import inspect
import json
from pathlib import Path

import pytest

import vl2 as package
from vl2.checkpoint.resolve import hub_id, locate_checkpoint
from vl2.cli.flags import GenerateFlags, ModelFlags
from vl2.config import ModelConfig
from vl2.infer.constraint import JsonSchema, check_whole
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import OptionFields, load

from ..reference import CHECKPOINTS, IMAGES

TINY = CHECKPOINTS / "tiny"
PHOTO = IMAGES / "small50x37.png"
CONTEXT = ModelConfig.from_file(TINY / "config.json").language_config.max_position_embeddings
LONG = {"type": "object", "properties": {"a": {"type": "string", "minLength": 200}}, "required": ["a"]}


@pytest.fixture
def long_schema(tmp_path: Path) -> Path:
    pytest.importorskip("llguidance")
    path = tmp_path / "long.json"
    path.write_text(json.dumps(LONG))
    return path


@pytest.mark.parametrize("flags", [(), ("--json",), ("-q",)], ids=lambda flags: "".join(flags) or "text")
def test_json_that_is_cut_off_is_one_line_and_nothing_on_stdout(vl2, long_schema: Path, flags: tuple[str, ...]) -> None:
    ran = vl2("ask", "hi", "-m", TINY, "--json-schema", long_schema, "--max-new-tokens", "5", *flags)
    says = "vl2: the JSON answer of 5 tokens was cut off: a larger max_new_tokens, or context, allows more\n"
    assert (ran.code, ran.out, ran.err) == (1, "", says)


def test_json_that_is_whole_is_printed(vl2, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "one.json").write_text('{"enum": [{"a": 1}]}')
    ran = vl2("ask", "hi", "-m", TINY, "--json-schema", tmp_path / "one.json")
    assert (ran.code, json.loads(ran.out), ran.err) == (0, {"a": 1}, "")


def test_in_python_the_reply_says_that_it_was_cut() -> None:
    pytest.importorskip("llguidance")
    reply = package.load(TINY).chat("hi", max_new_tokens=5, constraint=JsonSchema(LONG))
    assert reply.finish_reason == "length"
    with pytest.raises(package.UserError, match="was cut off"):
        check_whole(JsonSchema(LONG), reply.text, reply.finish_reason, 5)


@pytest.mark.parametrize(
    ("text", "reason", "is_whole"),
    [
        ('{"a": 1}', "stop", True),
        ('{"a": 1}', "length", True),  # the last token closed it
        ("12", "stop", True),
        ("12", "length", False),  # of 123, perhaps
        ('{"a": 1', "length", False),
        ('{"a": [1, 1, 1', "repetition", False),
        ('{"a": "x', "stop", False),  # by a stop text
    ],
)
def test_only_what_is_whole_counts_as_an_answer(text: str, reason: str, is_whole: bool) -> None:
    pytest.importorskip("llguidance")
    check_whole(None, text, reason, 3)
    if is_whole:
        check_whole(JsonSchema({}), text, reason, 3)
    else:
        with pytest.raises(package.UserError, match="the JSON answer of 3 tokens was"):
            check_whole(JsonSchema({}), text, reason, 3)


def test_boxes_that_were_cut_off_are_told(vl2) -> None:
    ran = vl2("locate", "a dog", "-i", PHOTO, "-m", TINY, "--max-new-tokens", "2")
    assert "the answer was cut off after 2 tokens: boxes may be missing" in ran.err


@pytest.mark.parametrize(
    "command",
    [("ask", "hi"), ("describe", "-i", PHOTO), ("locate", "a", "-i", PHOTO), ("chat",), ("read", PHOTO),
     ("batch", IMAGES, "--ask", "hi", "-o", "out.jsonl")],
    ids=lambda command: command[0],
)  # fmt: skip
def test_more_than_the_context_is_refused_before_the_weights_load(
    vl2, command: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vl2.infer.vlm.load", lambda *_, **__: pytest.fail("loaded"))
    for flags, says in (
        (("--max-new-tokens", "10000000"), f"max_new_tokens must be at most {CONTEXT}, the context for"),
        (("--max-context", "10000000"), f"max_context must be at most {CONTEXT}, the model's own, got 10000000"),
        (("--max-context", "100", "--max-new-tokens", "101"), "max_new_tokens must be at most 100, the context for"),
    ):
        ran = vl2(*command, "-m", TINY, *flags)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
        assert says in ran.err


def test_a_default_length_is_cut_to_a_small_context(vl2) -> None:
    assert vl2("ask", "hi", "-m", TINY, "--max-context", "30", "-q").code == 0


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ("tiny", "deepseek-ai/deepseek-vl2-tiny"),
        ("small", "deepseek-ai/deepseek-vl2-small"),
        ("base", "deepseek-ai/deepseek-vl2"),
    ],
)
def test_a_released_size_is_its_hub_id_everywhere(
    vl2, size: str, wanted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def download(repo_id: str, *_: object) -> Path:
        asked.append(repo_id)
        raise package.UserError("enough")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("vl2.checkpoint.resolve._download", download)
    (tmp_path / "train.csv").write_text("question,answer\nHi,Hello\n")
    commands = [
        ("ask", "hi"),
        ("inspect", PHOTO),
        ("quantize", size, "out"),
        ("bench",),
        ("finetune", "train.csv", "--out", "tuned"),
    ]
    for command in commands:
        ran = vl2(*command, *(() if command[0] == "quantize" else ("--model", size)))
        assert (ran.code, ran.err) == (1, "vl2: enough\n"), command
    with pytest.raises(package.UserError, match="enough"):
        package.load(size)
    assert asked == [wanted] * (len(commands) + 1)


def test_a_folder_called_as_a_size_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert (str(locate_checkpoint("tiny")), hub_id("tiny"), hub_id("org/x")) == ("tiny", "tiny", "org/x")


def test_flags_of_a_model_are_the_arguments_of_load_with_its_defaults() -> None:
    arguments = {name: p.default for name, p in inspect.signature(load).parameters.items()}
    flags = {field.name: field.default for field in dataclasses.fields(ModelFlags)}
    assert flags.pop("model") == arguments.pop("name")
    limits = {"max_context", "prefill_chunk"}  # `limits` in Python
    assert {name: arguments.get(name, "no such argument") for name in flags.keys() - limits} == {
        name: default for name, default in flags.items() if name not in limits
    }
    in_python = {"cache_tokens", "image_options", "limits", "reuse", "progress", "load_weights"}
    assert arguments.keys() - flags.keys() == in_python


def test_flags_of_an_answer_are_options_of_generation_with_their_defaults() -> None:
    assert GenerateFlags().options() == GenerateOptions()
    assert OptionFields.__annotations__.keys() == {field.name for field in dataclasses.fields(GenerateOptions)}
