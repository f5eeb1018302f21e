"""A folder of DeepSeek-OCR-2, which is not run, is refused by every command in one line that says what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ocr_family import OCR_2, write_folder
from tests.reference import IMAGES

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
    folder = write_folder(tmp_path / "folder", OCR_2, is_bare=is_bare)
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
    assert "this checkpoint is DeepSeek-OCR-2: " in ran.err
    assert "this version of vl2 does not run it" in ran.err
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
