"""What a person can get wrong: one line on stderr, nothing on stdout, exit code 1, and told before the work."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..reference import CHECKPOINTS, IMAGES

TINY = CHECKPOINTS / "tiny"
PHOTO = IMAGES / "small50x37.png"


def assert_refused(ran, says: str) -> None:
    assert ran.err.startswith("vl2: ")
    assert says in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    path = tmp_path / "damaged.png"
    path.write_bytes((IMAGES / "square384.png").read_bytes()[:4000])
    return path


@pytest.fixture(scope="module")
def local_url() -> Iterator[str]:
    httpd = HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler)
    threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}/photo.png"
    httpd.shutdown()
    httpd.server_close()


# Every command that takes an image: its arguments before the image.
TAKES_IMAGE = [("ask", "hi", "-i"), ("describe", "-i"), ("locate", "a dog", "-i"), ("chat", "-i"), ("inspect",)]


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("command", TAKES_IMAGE, ids=lambda c: c[0])
def test_a_bad_image_is_told_before_the_model_loads(vl2, command, damaged, local_url, tmp_path):
    assert_refused(vl2(*command, "no/such.png"), "cannot read image no/such.png: there is no such file")
    assert_refused(vl2(*command, damaged), "it is damaged or cut off")
    assert_refused(vl2(*command, local_url), "its address 127.0.0.1 is not on the public internet")
    assert_refused(vl2(*command, "data:image/png;base64,!!!"), "its base64 data is damaged")
    assert_refused(vl2(*command, "data:image/png,hello"), "it is not a picture in a known format")
    if command[0] != "inspect":
        assert_refused(vl2(*command, tmp_path), "it is a folder, not a picture")
    if command[0] != "chat":
        assert_refused(vl2(*command, "-", stdin=b""), "cannot read image <0 bytes>: it is empty")
        assert_refused(vl2(*command, "-", stdin=b"no picture"), "it is not a picture in a known format")


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ask", ""], "the question is empty"),
        (["ask", "-"], "the question is empty"),
        (["ask", "-", "-i", "-"], "only one thing can come from stdin"),
        (["ask", "hi", "-i", "-", "-i", "-"], "only one thing can come from stdin"),
        (["locate", " ", "-i", PHOTO], "the query is empty"),
        (["locate", "a dog"], "locate takes one image (-i), got 0"),
        (["locate", "a dog", "-i", PHOTO, "-i", PHOTO], "locate takes one image (-i), got 2"),
        (["describe"], "describe takes one image (-i), got 0"),
        (["chat", "-i", "-"], "chat reads questions from stdin"),
        (["inspect", "tiny", "--draw", "x.png"], "--draw is for images"),
        (["inspect", "tiny", "--model", "small"], "are for images, and this is a checkpoint"),
        (["inspect", "tiny", "--revision", "v1"], "--revision is for hub ids"),
        (["inspect", "photos/cat.jpg"], "cannot read image photos/cat.jpg: there is no such file"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_contradicts_itself_is_refused(vl2, arguments, says):
    assert_refused(vl2(*arguments), says)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("command", [("ask", "hi"), ("describe", "-i", PHOTO), ("locate", "a", "-i", PHOTO), ("chat",)])
@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--temperature", "-1", "temperature must be at least 0 (0 is greedy), got -1"),
        ("--temperature", "nan", "temperature must be at least 0 (0 is greedy), got nan"),
        ("--top-p", "0", "top_p must be above 0 and at most 1, got 0"),
        ("--top-k", "-1", "top_k must be at least 0"),
        ("--min-p", "2", "min_p must be in 0..1, got 2"),
        ("--repetition-penalty", "0", "repetition_penalty must be above 0"),
        ("--no-repeat-ngram-size", "-2", "no_repeat_ngram_size must be at least 0"),
        ("--max-new-tokens", "0", "max_new_tokens must be at least 1, got 0"),
        ("--stop", "", "stop strings must not be empty"),
        ("--device", "gpu", "device must be auto, cpu, cuda, cuda:N or mps, got gpu"),
        ("--device", "cuda:99", "device cuda:99 is not available here"),
        ("--dtype", "fp16", "dtype must be auto, float32, bfloat16, float16, got fp16"),
        ("--tiling", "all", "tiling must be paper, per-image or budget:N (N visual tokens), got 'all'"),
        ("--tiling", "budget:0", "a tiling budget must be at least 1 visual token, got 0"),
        ("--max-tiles", "0", "max_tiles must be at least 1, got 0"),
        ("--max-tiles", "100000000", "max_tiles must be at most 256, got 100000000"),
        ("--max-context", "0", "max_context must be at least 1, got 0"),
        ("--prefill-chunk", "0", "prefill_chunk must be at least 1, got 0"),
    ],
    ids=lambda value: str(value).split(" ")[0],
)  # fmt: skip
def test_a_wrong_value_is_told_before_the_model_loads(vl2, command, option, value, says):
    assert_refused(vl2(*command, option, value), says)


@pytest.mark.usefixtures("nothing_loads")
@pytest.mark.parametrize("command", [("ask", "hi", "-i", PHOTO), ("locate", "a dog", "-i", PHOTO), ("inspect", PHOTO)])
def test_a_picture_that_could_not_be_written_is_refused_before_the_work(vl2, command, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, says in (
        ("boxes", "--draw must name a picture (.png, "),
        ("boxes.mp4", "--draw must name a picture"),
        ("boxes.psd", "--draw must name a picture"),  # Pillow reads it, and cannot write it
        ("folder.png", "is a folder"),
        ("missing/boxes.png", "no folder"),
    ):
        assert_refused(vl2(*command, "--draw", tmp_path / name), says)


def test_drawing_needs_an_image(vl2):
    assert_refused(vl2("ask", "hi", "--draw", "boxes.png"), "--draw needs an image (-i)")


@pytest.mark.parametrize("command", [("ask", "hi"), ("chat",), ("inspect", PHOTO)], ids=lambda c: c[0])
def test_an_unknown_model_is_refused(vl2, command, tmp_path):
    assert_refused(
        vl2(*command, "-m", "nanoo"), 'no folder nanoo: give "nano" (built in), a released size (tiny, small'
    )
    assert_refused(vl2(*command, "-m", "./no/such"), "no folder ./no/such")
    assert_refused(vl2(*command, "-m", PHOTO), "is a file: give the folder that holds config.json")
    assert_refused(vl2(*command, "-m", TINY, "--revision", "v1"), "a revision is for hub ids")
    missing = "processor_config.json" if command[0] == "inspect" else f"no config.json in {tmp_path}"
    assert_refused(vl2(*command, "-m", tmp_path), missing)


def changed_checkpoint(folder: Path, change) -> Path:
    shutil.copytree(TINY, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


NORM = "language.model.norm.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop(NORM), f"lacks 1 tensors: {NORM}"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds 1 tensors that config.json does not describe: extra"),
        (lambda t: t.update({NORM: torch.zeros(3)}), f"tensors of another shape: {NORM} is [3], config.json says [64]"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_checkpoint_whose_tensors_do_not_fit_is_refused_by_name(vl2, tmp_path, change, says):
    folder = changed_checkpoint(tmp_path / "checkpoint", change)
    assert_refused(vl2("ask", "hi", "-m", folder), says)


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", "{", "config.json is not valid JSON"),
        ("config.json", "{}", "is this a DeepSeek-VL2 checkpoint?"),
        ("config.json", None, "no config.json"),
        ("tokenizer.json", "{}", "is not a tokenizer file"),
        ("tokenizer.json", None, "no tokenizer file"),
        ("processor_config.json", "[]", "processor_config.json"),
        ("model.safetensors", "not a header", "is not a safetensors file, or was cut short"),
        ("model.safetensors", None, "no model.safetensors"),
    ],
)
def test_a_damaged_or_missing_file_of_a_checkpoint_is_named(vl2, tmp_path, file, content, says):
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="utf-8")
    assert_refused(vl2("ask", "hi", "-m", folder), says)


def test_a_pickled_checkpoint_is_not_opened(vl2, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert_refused(vl2("ask", "hi", "-m", folder), "only safetensors are loaded")


def test_a_prompt_longer_than_the_context_is_refused_with_its_numbers(vl2):
    ran = vl2("ask", "hi", "-m", TINY, "-i", IMAGES / "square768.png", "--max-context", "1000")
    assert_refused(ran, "(1023 visual), the context is 1000")


def test_an_error_with_json_still_leaves_stdout_empty(vl2):
    assert_refused(vl2("ask", "hi", "-m", TINY, "--json", "-i", "no.png"), "there is no such file")


def test_text_that_is_not_utf8_is_refused(vl2):
    assert_refused(vl2("ask", "-", "-m", TINY, stdin=b"\xff\xfe"), "the question on stdin is not text (UTF-8)")


def test_the_configuration_decides_which_tensors_are_expected(vl2, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["language_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert_refused(vl2("ask", "hi", "-m", folder), "tensors that config.json does not describe")
