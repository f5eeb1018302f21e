"""Answers of models as blocks: types, confidence, and nothing lost."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.documents.model_page import model_page
from vl2.documents.write import to_markdown
from vl2.infer.reply import Reply, Usage

OCR = (
    "<|ref|>header<|/ref|><|det|>[[0, 0, 999, 40]]<|/det|>\nReport\n\n"
    "<|ref|>title<|/ref|><|det|>[[100, 50, 900, 120]]<|/det|>\n# Rivers\n\n"
    "<|ref|>text<|/ref|><|det|>[[100, 150, 900, 300]]<|/det|>\nThe *river* rises.\n\n- first\n- second\n\n"
    "<|ref|>table<|/ref|><|det|>[[100, 300, 900, 400]]<|/det|>\n<table><tr><td>a</td><td>b</td></tr></table>\n\n"
    "<|ref|>equation<|/ref|><|det|>[[100, 400, 900, 450]]<|/det|>\n\\[ a^2 \\]\n\n"
    "<|ref|>image<|/ref|><|det|>[[100, 450, 900, 600]]<|/det|>\n\n"
    "<|ref|>image_caption<|/ref|><|det|>[[100, 600, 900, 630]]<|/det|>\nFigure 1: A ferry\n"
)


def reply(text: str, kind: str = "DeepSeek-OCR") -> Reply:
    usage = Usage(prompt_tokens=1, visual_tokens=0, completion_tokens=1)
    return Reply(text=text, token_ids=(1,), finish_reason="stop", usage=usage, image_sizes=((999, 999),), kind=kind)  # type: ignore[arg-type]


def test_blocks_of_deepseek_ocr_have_types_and_boxes() -> None:
    page = model_page(reply(OCR), 3)
    assert [(b.type, b.text, b.level) for b in page.blocks] == [
        ("page_header", "Report", None),
        ("heading", "Rivers", 1),
        ("paragraph", "The *river* rises.", None),
        ("list_item", "first", 1),
        ("list_item", "second", 1),
        ("table", "<table><tr><td>a</td><td>b</td></tr></table>", None),
        ("formula", "a^2", None),
        ("figure", "", None),
        ("caption", "Figure 1: A ferry", None),
    ]
    assert {place.page for block in page.blocks for place in block.places} == {3}
    assert page.blocks[1].places[0].box_px == (100, 50, 900, 120)
    assert page.blocks[1].label == "title"


def test_plain_text_of_deepseek_vl2_has_paragraphs_without_boxes() -> None:
    table, code = "| a | b |\n|---|---|\n| 1 | 2 |", "```py\nx = 1\n```"
    text = f"# Rivers\nThe river rises\nin the hills.\n\n1. first\n2. second\n\n{table}\n\n{code}"
    page = model_page(reply(text, "DeepSeek-VL2"), 1)
    assert [(b.type, b.marker, b.text) for b in page.blocks][:4] == [
        ("heading", "", "Rivers"),
        ("paragraph", "", "The river rises\nin the hills."),
        ("list_item", "1.", "first"),
        ("list_item", "2.", "second"),
    ]
    assert [b.type for b in page.blocks][4:] == ["table", "code"]
    assert "<th>a</th>" in page.blocks[4].text
    assert page.blocks[5].text == "x = 1"
    assert all(b.places[0].box_px is None for b in page.blocks)


def test_confidence_is_the_mean_probability_of_a_blocks_tokens() -> None:
    first, second = "First block.", "Second block."
    tag = "<|ref|>text<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>"
    text = f"{tag}\n{first}\n{tag}\n{second}"
    ends, probabilities = [], []
    for end in range(1, len(text) + 1):  # a token for each letter
        ends.append(end)
        probabilities.append(0.5 if end > text.index(second) else 0.9)
    page = model_page(replace(reply(text), token_ends=tuple(ends), token_probabilities=tuple(probabilities)), 1)
    assert [round(block.confidence or 0, 3) for block in page.blocks] == [0.9, 0.5]
    assert model_page(reply(text), 1).blocks[0].confidence is None


PIECES = (
    "a", "b1", "*", "|", "#", "-", "1.", "```", "<table>", "<tr>", "<td>", "</table>", "<|ref|>", "<|/ref|>", "<|det|>",
    "\\[", "\\]", "$$", "|---|", "界", "\n", "\n\n",
)  # fmt: skip
WORDS = st.lists(st.sampled_from(PIECES), max_size=40)


@settings(max_examples=200, deadline=None)
@given(WORDS, st.sampled_from(["DeepSeek-VL2", "DeepSeek-OCR"]))
def test_no_word_of_an_answer_is_lost(words: list[str], kind: str) -> None:
    if kind == "DeepSeek-VL2":
        words = [
            word for word in words if "det|>" not in word
        ]  # boxes of DeepSeek-VL2 are dropped with what is in them
    text = " ".join(words).strip()
    page = model_page(reply(text, kind), 1)
    shown = to_markdown(page.blocks)
    wanted = Counter(re.findall(r"\b(?:a|b1)\b|界", re.sub(r"<\|/?\w+\|>", " ", text)))
    assert not wanted - Counter(re.findall(r"\b(?:a|b1)\b|界", shown))
