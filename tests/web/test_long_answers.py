"""Answers that are long, or nest as deep as they like: the page shows them, streamed or whole, and stays alive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import DONE, add, ask, send, wait_until

DEEP = 20_000
END = "\n\nThis is the end."
NESTED = {
    "quotes": ">" * DEEP + " a",
    "quotes with blanks": "> " * DEEP + "a",
    "quotes line by line": "\n".join(">" * count + "a" for count in range(0, 2000, 7)),
    "lists": "- " * DEEP + "a",
    "numbered lists": "1. " * DEEP + "a",
    "lists line by line": "\n".join(" " * (2 * count) + "- a" for count in range(300)),
    "quotes and lists": "> - " * DEEP + "a",
    "emphasis": "*" * DEEP + "a" + "*" * DEEP,
    "emphasis with words": "*a **b " * DEEP,
    "emphasis that ends": "**a *b " * (DEEP // 2) + "c* d** " * (DEEP // 2),
    "underscores": "_" * DEEP + "a" + "_" * DEEP,
    "struck out": "~~a " * DEEP,
    "brackets": "[" * DEEP + "a" + "]" * DEEP,
    "links": "[" * DEEP + "a" + "](https://example.org)" * DEEP,
    "links that do not end": "[a](https://example.org/(" * DEEP,
    "pictures": "![" * DEEP + "a" + "](https://example.org)" * DEEP,
    "backticks": "`" * DEEP + "a",
    "backticks of all lengths": " ".join("`" * count for count in range(300)),
    "fences": "```\n" * (DEEP // 2),
    "one table": "|" * DEEP + "\n" + "|-" * DEEP + "|\n",
    "tables": "a|b\n-|-\n1|2\n\n" * (DEEP // 10),
    "tables of missing cells": ("|a" * 500 + "|\n" + "|-" * 500 + "|\n" + "|\n" * 130 + "\n") * 40,
    "tables in quotes": "> " * DEEP + "|a|b|\n" + "> " * DEEP + "|-|-|",
    "grounding tags": "<|ref|>" * DEEP + "a" + "<|/ref|>" * DEEP,
    "box tags": "<|det|>" * DEEP + "[[1, 2, 3, 4]]",
    "box lists": "<|det|>" + "[" * DEEP + "1, 2, 3, 4" + "]" * DEEP + "<|/det|>",
    "mentions": "<|ref|>a<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|> " * (DEEP // 10),
    "tags of HTML": "<b>" * DEEP + "a",
    "angle brackets": "<" * DEEP,
    "backslashes": "\\" * DEEP,
    "headings": "# " * DEEP,
    "lines": "a\n" * DEEP,
    "formulas": "\\(a\\) " * (DEEP // 10),
    "formulas that do not end": "\\(" * DEEP + " \\[" * DEEP + " $$a " * DEEP,
    "formulas in lines that do not end": "\\[\n" * DEEP,
    "prices": "$1 $a " * DEEP,
    "a deep formula": "\\(" + "{" * 2400 + "a" + "}" * 2400 + "\\)",
    "a formula of macros": "\\(\\def\\a{\\b\\b}\\def\\b{\\c\\c}\\def\\c{\\a\\a}\\a\\)",
    "rules": "---\n" * (DEEP // 10),
    "one word": "a" * DEEP,
}
DEEPEST = """() => {
  let deepest = 0;
  for (const leaf of document.querySelectorAll(".answer-text *")) {
    if (leaf.firstElementChild) continue;
    let depth = 0;
    for (let at = leaf; at; at = at.parentElement) depth += 1;
    deepest = Math.max(deepest, depth);
  }
  return deepest;
}"""
# An answer as TurnView shows it, in so many pieces, each with its layout.
SHOW = """async ([text, pieces]) => {
  const { TurnView } = await import("/web/turn_view.js");
  await import("/web/katex/katex.min.js"); // otherwise formulas are drawn when it has come
  const answer = { text: "", boxes: [], finish: null, usage: null, error: null, isDone: false, isStopped: false };
  const view = new TurnView({ shown: "", pictures: [], answer }, { picturesOf: () => [], variants: () => [] }, {});
  document.getElementById("log").replaceChildren(view.question, view.answer);
  const size = Math.ceil(text.length / pieces);
  for (let at = 0; at < text.length; at += size) {
    answer.text += text.slice(at, at + size);
    view.update();
    view.answer.getBoundingClientRect();
  }
  answer.isDone = true;
  view.update();
  return document.querySelector(".answer-text").innerHTML;
}"""


def events(pieces: Iterable[str]) -> str:
    """Return a stream of the API that says these pieces."""
    deltas = [{"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return "".join(f"data: {json.dumps(event)}\n\n" for event in [*deltas, last]) + "data: [DONE]\n\n"


def answer_with(page: Any, pieces: Iterable[str]) -> None:
    """Let the page have this answer to the next question, through all of its own code."""
    page.unroute_all()
    body = events(pieces)
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))


@pytest.mark.parametrize("kind", NESTED)
def test_an_answer_that_nests_without_end_is_shown(page: Any, kind: str):
    text = NESTED[kind] + END
    for size in (len(text), 400):
        answer_with(page, [text[at : at + size] for at in range(0, len(text), size)])
        ask(page, "Again.")
        shown = page.locator(".answer-text").last.evaluate("element => element.textContent")
        assert "This is the end." in shown
        assert page.evaluate(DEEPEST) < 100
        page.click("#new-chat")  # the page still does what it is told


@pytest.mark.parametrize("kind", NESTED)
def test_an_answer_in_pieces_looks_as_the_whole_does(page: Any, kind: str):
    # Fewer marks than above: here every piece is shown, one after the other.
    text = NESTED[kind][: len(NESTED[kind]) // 20] + END
    whole = page.evaluate(SHOW, [text, 1])
    assert page.evaluate(SHOW, [text, 40]) == whole


MARKDOWN = (
    "# Title\n\nSome **bold** and\n*slanted* `code`.\n\n1. first\n\n2. second\n   - deep\n     more\n\n10) other\n\n"
    "a | b\n- | -:\n1 | 2\n3 | <|ref|>mug<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>\n\nafter\n\n"
    "```python\nx = 1\n\n# no heading\n```\n\n> said\nlazily\n\nsetext\n---\n\n* * *\n"
    "- [x](https://example.org)\n\n\n- y\n\n"
    "Sum \\(a_b\\) and $x*y*z$, for $5 and $6.\n\n\\[\nx\n- y\n\\] as said\n\n"
    "$$\\frac{1}{2}$$\n\n\\[ lost\n# heading\n\n"
    "A <|ref|>red\n\ncup<|/ref|> <|det|>[[9, 9, 99, 99]]<|/det|> ~~no~~ end"
)


def test_no_piece_of_an_answer_changes_what_the_whole_looks_like(page: Any):
    whole = page.evaluate(SHOW, [MARKDOWN, 1])
    assert page.evaluate(SHOW, [MARKDOWN, len(MARKDOWN)]) == whole
    assert page.evaluate(SHOW, [MARKDOWN.replace("\n", "\r\n"), len(MARKDOWN) * 2]) == whole


def test_what_has_been_shown_stays_the_elements_it_is(page: Any, backend: ScriptedBackend):
    """Else a selection, the focus and a screen reader lose their place with every word that comes."""
    backend.text = "First **paragraph**.\n\nSecond paragraph.\n\nThird paragraph."
    backend.pause_after = len(backend.processor.tokenizer.encode(backend.text)) - 2
    send(page, "Go on.")
    wait_until(page, "() => document.querySelectorAll('.answer-text p').length === 3")
    page.evaluate("() => { document.querySelector('.answer-text strong').id = 'kept' }")
    backend.go_on()
    page.wait_for_selector(DONE)
    assert page.locator("#kept").count() == 1
    assert page.locator(".answer-text").inner_text().split() == backend.text.replace("*", "").split()


def long_answer() -> str:
    """Return some 100,000 characters of everything that answers are made of."""
    part = (
        "## Part {n}\n\nWords with **weight**, `code` and a [link](https://example.org/{n}), "
        "and more words to fill it.\n\n"
        "- one\n- two\n  - three\n\n| a | b |\n|---|---|\n| {n} | 2 |\n\n```\nx = {n}\n```\n\n"
        "The <|ref|>thing {n}<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|> is there.\n\n"
    )
    return "".join(part.format(n=n) for n in range(400)) + "This is the end."


def test_a_long_answer_streams_and_the_page_can_be_used_meanwhile(page: Any, backend: ScriptedBackend, picture: Path):
    backend.text = long_answer()
    assert len(backend.text) > 100_000
    add(page, picture)
    send(page, "Tell me all.")
    wait_until(page, "() => document.querySelectorAll('.answer-text h4').length > 20")
    page.fill("#question", "typed meanwhile")
    page.wait_for_selector(DONE, timeout=120_000)
    assert page.locator(".answer-text h4").count() == 400
    assert page.locator(".answer-text .mention").count() == 400
    assert page.locator(".box").count() == 400
    assert page.input_value("#question") == "typed meanwhile"


def test_a_model_that_only_quotes_does_not_end_the_tab(page: Any, backend: ScriptedBackend):
    backend.text = ">" * DEEP + END
    send(page, "Say something.")
    page.wait_for_selector(DONE, timeout=120_000)
    assert page.locator(".answer-text").inner_text().endswith("This is the end.")


HOSTILE = (
    "<img src=x onerror='window.hurt=1'>",
    "![x](https://example.org/seen.png)",
    "![x](javascript:window.hurt=1)",
    "[x](JaVaScRiPt:window.hurt=1)",
    "[x](&#106;avascript:window.hurt=1)",
    "[x](java\tscript:window.hurt=1)",
    "[x](<javascript:window.hurt=1>)",
    "[x](vbscript:window.hurt=1) [y](data:text/html;base64,PHNjcmlwdD4=) [z](file:///etc/passwd) [w](//example.org)",
    "<javascript:window.hurt=1>",
    "[x]\n\n[x]: javascript:window.hurt=1",
    '[x](https://example.org "onmouseover=window.hurt=1")',
    '[x](https://example.org/"onclick="window.hurt=1)',
    "```html onload=window.hurt=1\n<script>window.hurt=1</script>\n```",
    "`<img src=x onerror=window.hurt=1>`",
    "| <img src=x onerror=window.hurt=1> |\n|---|\n| <svg/onload=window.hurt=1> |",
    "> - <details open ontoggle=window.hurt=1>",
    "<|ref|>[x](javascript:window.hurt=1)<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>",
    "`<|ref|><b>x</b><|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>`",
    "[<|ref|>x<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>](https://example.org)",
    "<style>*{display:none}</style><base href=https://example.org><meta http-equiv=refresh content=0>",
    "\ue0000\ue001 \ue000999\ue001 `\ue0000\ue001`",
)


def test_no_answer_becomes_markup_or_leaves_the_page(page: Any):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for text in HOSTILE:
        answer_with(page, [text[:7], text[7:]])
        ask(page, "Go.")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None
    inside = "img, script, iframe, svg, b, style, base, meta, details, [onclick], [onmouseover], a button"
    assert page.locator(f".answer-text :is({inside})").count() == 0
    links = page.evaluate("[...document.querySelectorAll('.answer-text a')].map(a => [a.protocol, a.rel, a.target])")
    assert links
    assert {tuple(link) for link in links} == {("https:", "noopener noreferrer", "_blank")}
    assert not [url for url in asked if "example.org" in url]


def test_a_table_needs_no_outer_pipes(page: Any, backend: ScriptedBackend):
    backend.text = "Item | Price\n--- | ---:\nTea | 2.40\nBun | 1.80"
    ask(page, "Prices?")
    rows = page.evaluate("[...document.querySelectorAll('tr')].map(r => [...r.children].map(c => c.textContent))")
    assert rows == [["Item", "Price"], ["Tea", "2.40"], ["Bun", "1.80"]]
    assert page.locator("td").nth(1).evaluate("cell => getComputedStyle(cell).textAlign") == "right"


def test_code_is_copied_by_its_own_button(open_page: Callable[..., Any], scripted_server, backend: ScriptedBackend):
    page = open_page(scripted_server[1].url)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    backend.text = "Run this:\n\n```sh\necho one\n  echo '<two>'\n```\n\nand that:\n\n```\nthree\n```"
    ask(page, "How?")
    assert page.locator(".code-head span").all_inner_texts() == ["sh", ""]
    page.click(".code button >> nth=0")
    page.wait_for_selector("#toast.shown")
    assert page.evaluate("navigator.clipboard.readText()") == "echo one\n  echo '<two>'"
    page.focus(".code button >> nth=1")
    page.keyboard.press("Enter")
    wait_until(page, "async () => await navigator.clipboard.readText() === 'three'")
