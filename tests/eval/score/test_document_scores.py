"""Every benchmark of documents is scored as its own program scores: recorded cases, and rules that can be counted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.eval.score.golden import cases
from vl2.eval.score.chartqapro import relaxed_correctness
from vl2.eval.task import Item
from vl2.eval.task_catalog import find_task

CLOSE = 1e-6  # the goldens are rounded to 10 decimals


def test_teds_is_that_of_pubtabnet() -> None:
    pytest.importorskip("lxml")
    pytest.importorskip("rapidfuzz")
    from vl2.eval.score.teds import teds

    for case in cases("teds"):
        assert teds(case["prediction"], case["answer"]) == pytest.approx(case["expected"], abs=CLOSE), case
        structure = teds(case["prediction"], case["answer"], is_structure_only=True)
        assert structure == pytest.approx(case["expected_structure"], abs=CLOSE), case


def test_teds_counts_what_is_missing() -> None:
    pytest.importorskip("lxml")
    pytest.importorskip("rapidfuzz")
    from vl2.eval.score.teds import teds

    def page(*rows: str) -> str:
        return f"<html><body><table>{''.join(rows)}</table></body></html>"

    first, second = "<tr><td>ab</td><td>c</td></tr>", "<tr><td>d</td><td>e</td></tr>"
    assert teds(page(first, second), page(first, second)) == 1.0
    assert teds(page(first), page(first, second)) == 0.5  # a row and two cells of six elements
    assert teds(page(first.replace("ab", "aX"), second), page(first, second)) == pytest.approx(1 - 0.5 / 6)
    assert teds(page(first.replace("<td>", '<td colspan="2">', 1), second), page(first, second)) == 1 - 1 / 6
    assert teds("no table", page(first)) == 0.0


def test_chartqapro_is_scored_as_by_its_program() -> None:
    for case in cases("chartqapro"):
        found = relaxed_correctness(case["answer"], case["prediction"], case["years"], is_exact=case["is_exact"])
        assert found == pytest.approx(case["expected"], abs=CLOSE), case


def test_olmocr_bench_passes_what_its_program_passes() -> None:
    for library in ("rapidfuzz", "fuzzysearch", "bs4"):
        pytest.importorskip(library)
    from vl2.eval.score.olmocr import passes

    for case in cases("olmocr_bench"):
        found = passes(case["test"], case["markdown"])
        if case["test"]["type"] == "math":  # the program was run without a browser, in which no formula is equal
            found = bool(found)
        assert found == case["expected"], case


def test_a_formula_that_only_a_browser_can_compare_is_undecided() -> None:
    from vl2.eval.score.olmocr import passes

    test = {"type": "math", "id": "1", "math": "x^2"}
    assert passes(test, r"so \(x^2\) and") is True
    assert passes(test, r"so \(x^{2}\) and") is None
    assert passes(test, "no formula") is False


def has_wordnet() -> bool:
    from vl2.errors import UserError
    from vl2.eval.score.page_similarity import check_wordnet

    try:
        check_wordnet()
    except UserError:
        return False
    return True


def item_of(case: dict[str, Any]) -> Item:
    notes = {"rule": case.get("eval", ""), "bbox": case.get("bbox"), "content": case.get("content")}
    return Item(id="1", question=case["question"], gold=case["answers"], part=case["type"], notes=notes)


def test_ocrbench_v2_is_scored_as_by_its_program() -> None:
    for library in ("lxml", "rapidfuzz"):
        pytest.importorskip(library)
    protocol = find_task("ocrbench_v2").protocol()[1]
    similar = ("full-page OCR", "fine-grained text recognition", "text translation")
    skipped = 0
    for case in cases("ocrbench_v2"):
        if (case["type"].startswith(similar) or "简答" in case["question"]) and not has_wordnet():
            skipped += 1
            continue
        found = protocol.score(item_of(case), case["prediction"]).value
        assert found == pytest.approx(case["expected"], abs=CLOSE), case
    assert skipped < len(cases("ocrbench_v2")) / 4


def test_omnidocbench_is_measured_as_by_its_program() -> None:
    for library in ("bs4", "lxml", "pylatexenc", "rapidfuzz", "scipy"):
        pytest.importorskip(library)
    from vl2.eval.score.omnidocbench import measure_page

    for case in cases("omnidocbench"):
        found = measure_page(case["page"], case["markdown"])
        assert found == pytest.approx(case["expected"], abs=CLOSE), case


def test_gold_lines_that_an_answer_joined_or_cut_are_matched_whole() -> None:
    for library in ("rapidfuzz", "scipy"):
        pytest.importorskip(library)
    from vl2.eval.score.match_lines import Match, quick_match

    gold = ["irisexpandswhenheated", "theboatcrossedthebay", "visitorsmayborrow"]
    assert quick_match(gold, gold[::-1]) == [
        Match(gold=(0,), answer=(2,)), Match(gold=(1,), answer=(1,)), Match(gold=(2,), answer=(0,))
    ]  # fmt: skip
    cut = [gold[0][:10], gold[0][10:], *gold[1:]]
    assert Match(gold=(0,), answer=(0, 1)) in quick_match(gold, cut)
    joined = [gold[0] + gold[1], gold[2]]
    assert Match(gold=(0, 1), answer=(0,)) in quick_match(gold, joined)
