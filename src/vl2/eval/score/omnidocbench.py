"""The measures of OmniDocBench for a page: edit distances of text, formulas, tables and reading order, and TEDS.

Each is a mean over the page's pairs of gold and answer, for edit distances weighted by the longer text, and is given as
a similarity: 1 less the edit distance. A page without formulas or tables has no such measure. Captions, footnotes,
running headers and footers and page numbers are matched but not scored.

Not computed: CDM, which draws formulas with LaTeX, and so the overall figure of version 1.5; BLEU and METEOR of text;
tables in an answer that are written in LaTeX count as missing.

Source: OmniDocBench's end-to-end evaluation in VLMEvalKit (commit e8e78f05).
Golden: tests/golden/scorers/omnidocbench.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vl2.eval.score.match_lines import Match, edit_distance, quick_match, simple_match
from vl2.eval.score.page_elements import Element, normal_formula, normal_table, normal_text, page_elements
from vl2.eval.score.teds import teds

Block = Mapping[str, Any]

NOT_SCORED = (
    "figure_caption", "figure_footnote", "table_caption", "table_footnote", "code_algorithm", "code_algorithm_caption",
    "header", "footer", "page_footnote", "page_number", "equation_caption",
)  # fmt: skip
TEXTS = ("text_block", "title", "code_txt", "code_txt_caption", "reference", "equation_caption", *NOT_SCORED)
FORMULAS, TABLES = "equation_isolated", "table"
MEASURES = ("text", "formulas", "tables TEDS", "tables TEDS of structure", "tables", "order")


@dataclass(frozen=True, kw_only=True)
class _Lines:
    """Gold blocks and answer elements in their normal form, those without any content left out."""

    gold: list[str]
    categories: list[str]
    answer: list[str]


def measure_page(page: Mapping[str, Any], markdown: str) -> dict[str, float]:
    """Return the measures of an answer for a page of the annotations, by the names in MEASURES."""
    blocks, elements = page_blocks(page), page_elements(markdown)
    measures: dict[str, float] = {}
    texts = [block for block in blocks if block["category_type"] in TEXTS]
    if texts:
        measures |= _measure_texts(texts, [element for element in elements if element.kind == "text"])
    formulas = [block for block in blocks if block["category_type"] == FORMULAS]
    if formulas:
        lines = _lines(formulas, "latex", [e for e in elements if e.kind == "formula"], normal_formula)
        pairs = [match for match in quick_match(lines.gold, lines.answer) if match.gold]
        _put(measures, "formulas", _joined(pairs, lines))
    tables = [block for block in blocks if block["category_type"] == TABLES]
    if tables:
        measures |= _measure_tables(tables, [element.text for element in elements if element.kind == "table"])
    return measures


def page_blocks(page: Mapping[str, Any]) -> list[Block]:
    """Return the annotated blocks in reading order. Parts of a paragraph that was cut in two are joined."""
    groups: list[list[Any]] = []
    for relation in (page.get("extra") or {}).get("relation", ()):
        if relation["relation_type"] == "truncated":
            ends = [relation["source_anno_id"], relation["target_anno_id"]]
            group = next((group for group in groups if {*ends} & {*group}), None)
            if group is None:
                groups.append(ends)
            else:
                group += [end for end in ends if end not in group]
    cut = {id for group in groups for id in group}
    by_id = {block["anno_id"]: block for block in page["layout_dets"]}
    blocks = [block for block in page["layout_dets"] if block["anno_id"] not in cut]
    for group in groups:
        parts = sorted((by_id[id] for id in group if id in by_id), key=lambda block: block["order"])
        if parts:
            blocks.append({**parts[0], "text": "".join(str(part["text"]) for part in parts)})
    return sorted(blocks, key=lambda block: block.get("order") or 0)


def _lines(blocks: Sequence[Block], name: str, elements: Sequence[Element], normal: Any) -> _Lines:
    gold = [(normal(str(block[name])), block["category_type"]) for block in blocks if str(block.get(name, ""))]
    kept = [(text, category) for text, category in gold if text]
    answer = [text for element in elements if (text := normal(element.text))]
    return _Lines(gold=[text for text, _ in kept], categories=[category for _, category in kept], answer=answer)


def _measure_texts(blocks: Sequence[Block], elements: Sequence[Element]) -> dict[str, float]:
    lines = _lines(blocks, "text", elements, normal_text)
    matches = [
        match for match in quick_match(lines.gold, lines.answer)
        if not match.gold or _category(match, lines.categories) not in NOT_SCORED
    ]  # fmt: skip
    measures: dict[str, float] = {}
    _put(measures, "text", _joined(matches, lines))
    # The program looks up orders and positions by the index among all blocks, those without content included.
    orders = [[blocks[i].get("order") for i in match.gold] for match in matches]
    placed = [
        (elements[match.answer[0]].position, order)
        for match, order in zip(matches, orders, strict=True)
        if match.gold and match.answer
    ]
    said = [place for _, order in sorted(placed, key=lambda pair: pair[0]) for place in order if place]
    gold = sorted(place for order in orders for place in order if place)
    if said or gold:
        measures["order"] = 1 - edit_distance(gold, said) / max(len(gold), len(said))
    return measures


def _category(match: Match, categories: Sequence[str]) -> str:
    """Return the most frequent category of the match's gold lines, preferably one that is scored."""
    found = [categories[i] for i in match.gold]
    scored = [category for category in found if category not in NOT_SCORED]
    return Counter(scored or found).most_common(1)[0][0]


def _joined(matches: Sequence[Match], lines: _Lines) -> list[tuple[str, str]]:
    return [
        ("".join(lines.gold[i] for i in match.gold), "".join(lines.answer[j] for j in match.answer))
        for match in matches
    ]  # fmt: skip


def _put(measures: dict[str, float], name: str, pairs: Sequence[tuple[str, str]]) -> None:
    """Add 1 less the sum of edit distances over the sum of the longer lengths; nothing if all texts are empty."""
    longest = sum(max(len(gold), len(answer)) for gold, answer in pairs)
    if longest:
        measures[name] = 1 - sum(edit_distance(gold, answer) for gold, answer in pairs) / longest


def _measure_tables(blocks: Sequence[Block], answers: Sequence[str]) -> dict[str, float]:
    golds = [html for block in blocks if (html := str(block.get("html", "")))]
    answers = [html for html in answers if html]
    pairs = []
    for match in simple_match(golds, answers):
        if match.gold:
            answer = normal_table(answers[match.answer[0]]) if match.answer else ""
            pairs.append((normal_table(golds[match.gold[0]]), answer))
    if not pairs:
        return {}
    measures = {
        "tables TEDS": sum(_teds(answer, gold) for gold, answer in pairs) / len(pairs),
        "tables TEDS of structure": sum(_teds(answer, gold, is_structure_only=True) for gold, answer in pairs)
        / len(pairs),
    }
    _put(measures, "tables", pairs)
    return measures


def _teds(answer: str, gold: str, *, is_structure_only: bool = False) -> float:
    try:
        return teds(answer, gold, is_structure_only=is_structure_only)
    except ValueError:  # a span that is not a number
        return 0.0
