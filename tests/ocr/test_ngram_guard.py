"""The guard against loops: the released one's bans, its defaults by model, and what a request may say of it."""

from __future__ import annotations

import json

import pytest
import torch

from tests.ocr.golden import FOLDER, toy_vlm
from vl2.errors import UserError
from vl2.infer.ngram_guard import ban_repeated_ngrams, guarded_ids
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import load


def banned(ids: list[int], size: int, window: int, allowed: list[int], split: int) -> list[int]:
    """Return what is banned when the first `split` ids are the prompt's."""
    looked_at = guarded_ids(ids[:split], ids[split:], window)
    return ban_repeated_ngrams(torch.zeros(5), looked_at, size, allowed).isinf().nonzero().flatten().tolist()


def test_the_same_ids_are_banned_as_by_the_released_guard() -> None:
    cases = json.loads((FOLDER / "ngram_guard.json").read_text(encoding="utf-8"))
    assert len(cases) == 200
    for case in cases:
        ids = case["ids"]
        for split in {0, len(ids) // 2, len(ids)}:
            given = (ids, case["size"], case["window"], case["allowed"], split)
            assert banned(*given) == case["banned"], given


def test_each_model_has_the_guard_that_it_was_released_with() -> None:
    tokenizer = toy_vlm().processor.tokenizer
    cells = tuple(tokenizer.ids_of(["<td>", "</td>"]))
    assert len(cells) == 2

    def of(kind: str, options: GenerateOptions | None = None) -> tuple[int | None, int, tuple[int, ...]]:
        made = (options or GenerateOptions()).with_released_guard(kind, tokenizer)  # type: ignore[arg-type]
        return made.no_repeat_ngram_size, made.no_repeat_ngram_window, tuple(made.no_repeat_ngram_allowed)

    assert of("DeepSeek-VL2") == (0, 0, ())
    assert of("DeepSeek-OCR") == (30, 90, cells)
    assert of("Unlimited-OCR") == (35, 128, cells)
    assert of("DeepSeek-OCR-2") == (20, 90, cells)
    assert of("DeepSeek-OCR", GenerateOptions(no_repeat_ngram_size=0)) == (0, 0, ())
    assert of("DeepSeek-OCR", GenerateOptions(no_repeat_ngram_size=5)) == (5, 0, ())
    assert of("Unlimited-OCR", GenerateOptions(no_repeat_ngram_window=1024)) == (35, 1024, cells)


def test_a_loop_is_left_by_default_and_not_with_the_guard_off() -> None:
    """One token is made the likeliest always: without a guard the answer is that token alone."""
    vlm = toy_vlm("tiny")
    favorite = {100: 100.0}
    looped = vlm.chat("Free OCR.", max_new_tokens=70, logit_bias=favorite, no_repeat_ngram_size=0)
    guarded = vlm.chat("Free OCR.", max_new_tokens=70, logit_bias=favorite)
    assert set(looped.token_ids) == {100}
    # 30 in a row are the first 30-gram; the 31st would repeat it.
    assert guarded.token_ids[:30] == (100,) * 30
    assert guarded.token_ids[30] != 100
    allowed = vlm.chat("Free OCR.", max_new_tokens=70, logit_bias=favorite, no_repeat_ngram_size=30,
                       no_repeat_ngram_window=90, no_repeat_ngram_allowed=[100])  # fmt: skip
    assert set(allowed.token_ids) == {100}


def test_deepseek_vl2_is_left_as_it_was() -> None:
    looped = load("nano").chat("Say it.", max_new_tokens=70, logit_bias={100: 100.0})
    assert set(looped.token_ids) == {100}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"no_repeat_ngram_window": -1}, "no_repeat_ngram_window must be at least 0"),
        ({"no_repeat_ngram_allowed": "td"}, "no_repeat_ngram_allowed must be a list of token ids"),
        ({"no_repeat_ngram_allowed": [-1]}, "no_repeat_ngram_allowed: a token id must be a whole number"),
        ({"no_repeat_ngram_size": "3"}, "no_repeat_ngram_size must be a whole number"),
    ],
)
def test_a_wrong_guard_is_refused(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        GenerateOptions(**options)
