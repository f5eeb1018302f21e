"""Formulas in LaTeX and tables: drawn, copied, and no way to inject anything."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.web.scripted_backend import ScriptedBackend
from tests.web.talk import ask, wait_until

DRAWN = "n => document.querySelectorAll('.answer-text .katex-html').length === n"


def test_formulas_of_all_four_kinds_are_drawn(page: Any, backend: ScriptedBackend):
    backend.text = "So \\(a_1^2\\) and $b*c*d$.\n\n\\[\nx = \\frac{1}{2}\n- y\n\\]\n\n$$\\sqrt{z}$$\n\nThe end."
    ask(page, "Show.")
    wait_until(page, DRAWN, 4)
    assert page.locator(".answer-text .katex-display").count() == 2
    assert page.locator(".answer-text :is(em, li)").count() == 0
    assert page.locator(".answer-text math mfrac").count() == 1  # for those who listen
    loaded = "() => document.fonts.ready.then(() => [...document.fonts].filter(f => f.status === 'loaded').length)"
    assert page.evaluate(loaded) > 0


def test_prices_and_backslashes_are_no_formulas(page: Any, backend: ScriptedBackend):
    backend.text = "Tea $2.40, bun $1.80, or $ 3 and 4$5. A path: C:\\(x, and \\[1\\."
    ask(page, "Show.")
    assert page.locator(".answer-text .math").count() == 0
    assert "Tea $2.40, bun $1.80, or $ 3 and 4$5." in page.locator(".answer-text").inner_text()


@pytest.mark.parametrize("broken", ["\\(\\frac{1}\\)", "\\(\\nothing{x}\\)", "\\[ a \\\\ \\end{b} \\]", "\\(}\\)"])
def test_what_is_no_latex_is_shown_as_it_was_written(page: Any, backend: ScriptedBackend, broken: str):
    backend.text = f"Look: \\(x\\)\n\n{broken}"
    ask(page, "Show.")
    wait_until(page, DRAWN, 1)
    assert broken in page.locator(".answer-text").inner_text()


ATTACKS = (
    "\\(\\href{javascript:window.hurt=1}{click}\\)",
    "\\(\\url{javascript:window.hurt=1}\\)",
    "\\(\\htmlData{x=1}{a}\\)",
    "\\(\\htmlStyle{background: url(//example.org)}{a}\\)",
    "\\(\\includegraphics{https://example.org/a.png}\\)",
    "\\(\\text{<img src=x onerror=window.hurt=1>}\\)",
    "\\[\\begin{array}{c}<script>window.hurt=1</script>\\end{array}\\]",
    "$<svg onload=window.hurt=1>$",
)


def test_a_formula_cannot_inject_anything(page: Any, backend: ScriptedBackend):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    backend.text = "\n\n".join([*ATTACKS, "\\(x\\)"])
    ask(page, "Show.")
    wait_until(page, "() => document.querySelectorAll('.answer-text .katex-html').length >= 3")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hurt") is None
    assert page.locator(".answer-text :is(img, script, a, iframe, [onload], [onerror], [data-x])").count() == 0
    assert not [url for url in asked if "example.org" in url]


def test_katex_is_loaded_only_with_a_formula(page: Any, backend: ScriptedBackend):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    backend.text = "No formula, but $5."
    ask(page, "Show.")
    assert not [url for url in asked if "katex" in url]


TABLES = {
    "a | b\n--- | ---\n1 | **two** words\n3 |": [["a", "b"], ["1", "two words"], ["3", ""]],
    "<table><tr><td colspan=2>x\n y</td><td>z</td></tr><tr><td rowspan=2>p</td><td>q</td><td>r</td></tr>"
    "<tr><td>s</td><td>t</td></tr></table>": [["x y", "", "z"], ["p", "q", "r"], ["", "s", "t"]],
}


@pytest.mark.parametrize("source", TABLES)
def test_a_table_is_copied_for_a_spreadsheet(page: Any, backend: ScriptedBackend, source: str):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    backend.text = source
    ask(page, "Show.")
    page.get_by_role("button", name="Copy table").click()
    rows = "\n".join("\t".join(row) for row in TABLES[source])
    wait_until(page, f"async () => await navigator.clipboard.readText() === {json.dumps(rows)}")
