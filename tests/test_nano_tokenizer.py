"""The tokenizer of the built-in model: its ids, its rules, and that nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers

from vl2.config import preset

NANO = Path(__file__).parents[1] / "src" / "vl2" / "nano"
TOKENIZER = Tokenizer.from_file(str(NANO / "tokenizer.json"))

SPECIAL_IDS = {
    "<｜begin▁of▁sentence｜>": 0, "<｜end▁of▁sentence｜>": 1, "<｜▁pad▁｜>": 2,
    "<image>": 4088, "<|ref|>": 4089, "<|/ref|>": 4090, "<|det|>": 4091, "<|/det|>": 4092,
    "<|grounding|>": 4093, "<|User|>": 4094, "<|Assistant|>": 4095,
}  # fmt: skip


def pieces(text: str) -> list[str]:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    return [TOKENIZER.decode([i], skip_special_tokens=False) for i in ids]


def test_the_ids_are_those_that_the_configuration_counts() -> None:
    language = preset("nano").language_config
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(language.vocab_size))
    assert (language.bos_token_id, language.eos_token_id) == (0, 1)


def test_special_tokens_have_their_ids_and_are_marked_special() -> None:
    added = json.loads((NANO / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {token["content"]: token["id"] for token in added} == SPECIAL_IDS
    assert all(token["special"] and not token["normalized"] for token in added)
    config = json.loads((NANO / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["pad_token"]["content"] == "<｜▁pad▁｜>"


def test_every_byte_is_in_the_vocabulary() -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(TOKENIZER.get_vocab())


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.integers(0, 10**12))
def test_a_number_is_spelled_in_digits(number: int) -> None:
    assert pieces(str(number)) == list(str(number))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[12, 34, 5, 999]]", ["[[", "1", "2", ", ", "3", "4", ", ", "5", ", ", "9", "9", "9", "]]"]),
        ("<|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>",
         ["<|det|>", "[[", "1", ", ", "2", ", ", "3", ", ", "4", "],", " [",
          "5", ", ", "6", ", ", "7", ", ", "8", "]]", "<|/det|>"]),
        ("<|User|>: What is the total?\n\n<|Assistant|>:",
         ["<|User|>", ":", " What", " is", " the", " total", "?\n\n", "<|Assistant|>", ":"]),
        ("这张图片", ["这", "张", "图", "片"]),
    ],
)  # fmt: skip
def test_the_usual_texts_take_few_tokens(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected
