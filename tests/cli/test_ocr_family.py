"""A folder of the DeepSeek-OCR family is refused by every command in one line that says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ocr_family import FAMILY, OCR, write_folder
from tests.reference import IMAGES
from vl2.errors import UserError
from vl2.infer.vlm import load

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
    folder = write_folder(tmp_path / "folder", OCR, is_bare=is_bare)
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
    assert "this checkpoint is DeepSeek-OCR: " in ran.err
    assert "this version of vl2 does not run it" in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize(("config", "name"), FAMILY, ids=[name for _, name in FAMILY])
def test_each_of_the_family_is_told_by_its_name(tmp_path: Path, config: dict, name: str) -> None:
    with pytest.raises(UserError, match=f"this checkpoint is {name}: it has another image encoder"):
        load(write_folder(tmp_path / "folder", config))
