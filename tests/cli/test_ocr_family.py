"""Commands on the DeepSeek-OCR family: what is run, and one line that says what it is of what is not."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.ocr.golden import both_encoders, toy_folder
from tests.ocr_family import UNKNOWN, write_folder
from tests.reference import IMAGES
from vl2.infer.reply import Reply, Usage
from vl2.infer.vlm import VLM

PHOTO = str(IMAGES / "small50x37.png")
COMMANDS = [
    ("ask", "hi", "--model", "FOLDER"),
    ("ask", "hi", "-i", PHOTO, "--model", "FOLDER"),
    ("describe", "-i", PHOTO, "--model", "FOLDER"),
    ("locate", "a dog", "-i", PHOTO, "--model", "FOLDER"),
    ("read", PHOTO, "--model", "FOLDER"),
    ("chat", "--model", "FOLDER"),
    ("batch", "IN", "--out", "OUT", "--model", "FOLDER"),
    ("serve", "--model", "FOLDER"),
    ("inspect", "FOLDER"),
    ("inspect", PHOTO, "--model", "FOLDER"),
    ("quantize", "FOLDER", "OUT"),
    ("bench", "--model", "FOLDER"),
    ("eval", "run", "presence", "--out", "OUT", "--model", "FOLDER"),
    ("finetune", "DATA", "--model", "FOLDER", "--out", "OUT"),
]


@pytest.mark.parametrize("is_bare", [False, True], ids=["with tokenizer", "bare"])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c[:3]))
def test_every_command_says_what_the_folder_is(vl2, tmp_path: Path, command: tuple[str, ...], is_bare: bool) -> None:
    folder = write_folder(tmp_path / "folder", UNKNOWN, is_bare=is_bare)
    (tmp_path / "data.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    (tmp_path / "in.jsonl").write_text('{"prompt": "hi"}\n')
    paths = {
        "FOLDER": folder,
        "OUT": tmp_path / "out",
        "DATA": tmp_path / "data.jsonl",
        "IN": tmp_path / "in.jsonl",
    }
    ran = vl2(*(paths.get(word, word) for word in command))
    assert "this checkpoint is a model of the DeepSeek-OCR family: it has image encoders that" in ran.err
    assert "this version of vl2 does not run it" in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


def reply(text: str) -> Reply:
    usage = Usage(prompt_tokens=1, visual_tokens=0, completion_tokens=1)
    return Reply(text=text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=((1998, 999),),
                 kind="DeepSeek-OCR")  # fmt: skip


PAGE = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 999, 500]]<|/det|>\n# Report\n"
    "<|ref|>image<|/ref|><|det|>[[0, 500, 999, 999]]<|/det|>\n"
)


@both_encoders
def test_read_prints_markdown_and_blocks(vl2, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model says is put in its place: a toy's words mean nothing."""
    asked: list[str] = []

    def batch(self: VLM, requests: Sequence[Any]) -> list[Reply]:
        asked.extend(request.messages[0].text for request in requests)
        return [reply(PAGE) for _ in requests]

    monkeypatch.setattr(VLM, "batch", batch)
    ran = vl2("read", PHOTO, "--model", toy_folder(name))
    assert (ran.code, ran.out) == (0, "# Report\n")
    ran = vl2("read", PHOTO, "--model", toy_folder(name), "--json")
    assert asked == ["<|grounding|>Convert the document to markdown."] * 2
    line = json.loads(ran.out)
    assert (line["text"], [block["type"] for block in line["blocks"]]) == ("# Report", ["heading", "figure"])
    assert [block["label"] for block in line["blocks"]] == ["title", "image"]
    assert line["blocks"][0]["places"] == [{"page": 1, "box_px": [0.0, 0.0, 1998.0, 500.0]}]


def test_read_cuts_figures_out_draws_pages_and_writes_tables(vl2, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    Image.new("RGB", (1998, 999), "white").save(tmp_path / "page.png")
    table = "<|ref|>table<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>\n<table><tr><td>a</td></tr></table>"
    monkeypatch.setattr(VLM, "batch", lambda *_, **__: [reply(PAGE + table)])
    monkeypatch.chdir(tmp_path)
    flags = ("--model", toy_folder(), "--figures", "cut out", "--draw", "drawn", "--tables", "markdown")
    ran = vl2("read", "page.png", *flags)
    expected = "# Report\n\n![figure](cut%20out/page-1.png)\n\n| a |\n| --- |\n"
    assert (ran.code, ran.out) == (0, expected), ran.err
    with Image.open("cut out/page-1.png") as figure, Image.open("drawn/page.png") as drawn:
        assert (figure.size, drawn.size) == ((1998, 499), (1998, 999))
        assert drawn.getpixel((1000, 1)) == (213, 94, 0)  # the title's frame, in the first color
    line = json.loads(vl2("read", "page.png", *flags, "--json").out)
    assert line["text"] + "\n" == expected
    assert [block.get("figures") for block in line["blocks"]] == [None, ["cut%20out/page-1.png"], None]


def test_read_does_not_write_over_its_pages_and_knows_its_model(vl2, tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "page.png")
    ran = vl2("read", tmp_path / "page.png", "--model", toy_folder(), "--draw", tmp_path)
    assert "would write over the picture" in ran.err
    ran = vl2("read", tmp_path / "page.png", "--figures", tmp_path / "x")
    assert "--figures and --tables are for documents and for the DeepSeek-OCR family; DeepSeek-VL2" in ran.err


def test_pages_of_an_answer_are_the_last_images_of_the_conversation() -> None:
    text = "<PAGE><|det|>text [0, 0, 999, 999]<|/det|>a<PAGE><|det|>image [0, 0, 999, 999]<|/det|>"
    said = replace(reply(text), image_sizes=((9, 9), (999, 999), (1998, 999)), kind="Unlimited-OCR")
    assert [(block.page, block.boxes_px) for block in said.blocks] == [
        (0, ((0.0, 0.0, 999.0, 999.0),)),
        (1, ((0.0, 0.0, 1998.0, 999.0),)),
    ]
    assert [(box.label, box.image_index) for box in said.boxes] == [("text", 1), ("image", 2)]
    assert [box.label for box in said.boxes_on(2)] == ["image"]


def test_ask_answers_in_a_mode_with_the_guard_of_a_request(vl2) -> None:
    flags = ("--model", toy_folder(), "--tiling", "tiny", "--max-new-tokens", "3", "--json")
    ran = vl2("ask", "Free OCR.", "-i", PHOTO, *flags, "--no-repeat-ngram-size", "5", "--no-repeat-ngram-window", "50")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["usage"]["visual_tokens"] == 8 * 9 + 1


def test_deepseek_ocr_2_answers_in_its_modes(vl2) -> None:
    flags = ("--model", toy_folder("deepseek-ocr-2"), "--max-new-tokens", "3", "--json")
    for mode, tokens in (("small", 144 + 1), ("base", 256 + 1)):
        ran = vl2("ask", "Free OCR.", "-i", PHOTO, "--tiling", mode, *flags)
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["usage"]["visual_tokens"] == tokens
    ran = vl2("ask", "Free OCR.", "-i", PHOTO, "--tiling", "large", *flags)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "tiling large: DeepSeek-OCR-2 has paper and the modes small, base, gundam" in ran.err


def test_deepseek_ocr_2_is_inspected(vl2) -> None:
    ran = vl2("inspect", toy_folder("deepseek-ocr-2"))
    assert ran.code == 0, ran.err
    assert "SAM, 3 layers of 48, and a decoder with queries, 2 layers of 32; views of 1024 px, 256 tokens each" in (
        " ".join(ran.out.split())
    )


def test_inspect_shows_a_page_and_a_checkpoint(vl2) -> None:
    ran = vl2("inspect", PHOTO, "--model", toy_folder(), "--tiling", "base")
    assert "views   the whole in 1024 px" in ran.out
    ran = vl2("inspect", toy_folder())
    assert ran.code == 0, ran.err
    assert "SAM, 3 layers of 48, and CLIP, 2 layers of 32; views of 1024 px, 256 tokens each" in " ".join(
        ran.out.split()
    )


@pytest.mark.parametrize("name", ["deepseek-ocr-2", "unlimited-ocr"])
def test_fine_tuning_learns_and_its_adapter_answers(vl2, name: str, tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        Image.new("RGB", (60 + number, 40), "white").save(tmp_path / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "question": "Free OCR.", "answer": "one two"}))
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    flags = ("--model", toy_folder(name), "--out", tmp_path / "out", "--steps", "3", "--learning-rate", "0.02",
             "--batch-size", "1", "--held-out", "1", "--max-new-tokens", "2", "--targets", "attention", "experts",
             "--json")  # fmt: skip
    ran = vl2("finetune", tmp_path / "data.jsonl", *flags)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["after"]["loss"] < 0.9 * told["before"]["loss"]
    answered = vl2("ask", "Free OCR.", "-i", tmp_path / "0.png", "--model", toy_folder(name), "--adapter",
                   tmp_path / "out" / "adapter", "--max-new-tokens", "4")  # fmt: skip
    assert answered.code == 0, answered.err


@pytest.mark.parametrize(("name", "half"), [("deepseek-ocr", "clip"), ("deepseek-ocr-2", "query_encoder")])
def test_a_part_of_the_encoder_is_frozen(vl2, name: str, half: str, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text(f"{json.dumps({'question': 'a', 'answer': 'b'})}\n" * 8)
    asked = ("finetune", tmp_path / "data.jsonl", "--model", toy_folder(name), "--method", "full", "--dry-run")
    ran = vl2(*asked, "--out", tmp_path / "a", "--freeze", "sam", half)
    assert ran.code == 0, ran.err
    whole = vl2(*asked, "--out", tmp_path / "b")
    trained = [int(re.search(r"vision ([\d,]+)", said.out + said.err)[1].replace(",", "")) for said in (ran, whole)]
    assert 0 < trained[0] < trained[1]


def test_a_record_that_unlimited_ocr_cannot_learn_is_named(vl2, tmp_path: Path) -> None:
    """It sees the last 16 tokens of an answer that it writes and whole answers before, and not both in one pass."""
    letters = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    texts = ("a", letters, "b", "c")
    turns = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    rows = [{"conversations": turns}, *[{"conversations": turns[:2]}] * 8]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    flags = ("--model", toy_folder("unlimited-ocr"), "--out", tmp_path / "c", "--dry-run")
    ran = vl2("finetune", tmp_path / "data.jsonl", *flags)
    said = r"data-0.* answer 1 of 2 has \d+ tokens, and Unlimited-OCR sees the last 16 of an answer that it writes"
    assert re.search(said, ran.err)
    assert ran.code == 0, ran.err  # the others are trained on


@both_encoders
def test_a_page_is_measured_end_to_end(vl2, name: str) -> None:
    ran = vl2("bench", "--quick", "--only", "page", "--model", toy_folder(name), "--json")
    assert ran.code == 0, ran.err
    stages = json.loads(ran.out)["stages"]
    _, page, first, others = stages
    assert [row["name"] for row in stages] == [
        "load", "page of 1024 x 1024, 8 tokens of answer", "  until its first token", "  its other tokens",
    ]  # fmt: skip
    assert [row["unit"] for row in stages] == ["s", "pages/min", "s", "tokens/s"]
    # All three are of one run: a page is the first token and seven more.
    (per_minute,), (first_s,), (rate,) = (next(iter(row["figures"].values())) for row in (page, first, others))
    assert 60 / per_minute == pytest.approx(first_s + 7 / rate)
