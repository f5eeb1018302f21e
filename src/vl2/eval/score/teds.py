"""TEDS, the tree-edit-distance-based similarity of two tables in HTML, 0..1.

Nodes are the elements below `<table>`, and a `<td>` has its text as a list of characters and tags. Relabeling costs 1
if tag or spans differ; else, for cells, the normalized Levenshtein distance of their texts. The distance is divided by
the larger number of elements. `<th>` is another element than `<td>` and its text is not compared.

Source: Zhong et al. 2020, arXiv 1911.10683; `metric.py` of IBM's PubTabNet, which OCRBench v2 and OmniDocBench run.
Golden: tests/golden/scorers/teds.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vl2.eval.score.tree_edit import TreeNode, tree_distance
from vl2.optional_imports import import_extra


@dataclass(frozen=True)
class TableLabel:
    """An element of a table; spans and tokens are those of a `<td>`."""

    tag: str
    spans: tuple[int, int] | None = None  # colspan, rowspan
    tokens: tuple[str, ...] = ()  # characters, and tags such as `<b>` and `</b>`


def teds(answer: str, gold: str, *, is_structure_only: bool = False) -> float:
    """Return the TEDS of two HTML pages, each with a table directly in its body; 0 if one has none.

    Raise ValueError for a span that is not a whole number.
    """
    tables = [_first_table(page) for page in (answer, gold)]
    if any(table is None for table in tables):
        return 0.0
    trees = [_tree(table, with_text=not is_structure_only) for table in tables]
    count = max(sum(1 for _ in table.iterdescendants()) for table in tables)
    return 1.0 - tree_distance(trees[0], trees[1], _relabel) / count if count else 1.0


def _first_table(page: str) -> Any:
    """Return the first table that is a child of the body, or None."""
    html = import_extra("lxml.html", "documents", "scoring tables")
    if not page.strip():
        return None
    try:
        root = html.fromstring(page, parser=html.HTMLParser(remove_comments=True, encoding="utf-8"))
    except (ValueError, import_extra("lxml.etree", "documents", "scoring tables").ParserError):
        return None
    return next(iter(root.xpath("body/table")), None)


def _tree(element: Any, *, with_text: bool) -> TreeNode[TableLabel]:
    if element.tag != "td":
        children = [_tree(child, with_text=with_text) for child in element]
        return TreeNode(TableLabel(element.tag), children)
    spans = int(element.get("colspan", "1")), int(element.get("rowspan", "1"))
    tokens = _tokens(element)[1:-1] if with_text else []
    return TreeNode(TableLabel("td", spans, tuple(tokens)))


def _tokens(element: Any) -> list[str]:
    tokens = [f"<{element.tag}>", *(element.text or "")]
    for child in element:
        tokens += _tokens(child)
    if element.tag != "unk":
        tokens.append(f"</{element.tag}>")
    if element.tag != "td":
        tokens += element.tail or ""
    return tokens


def _relabel(a: TableLabel, b: TableLabel) -> float:
    if a.tag != b.tag or a.spans != b.spans:
        return 1.0
    return _token_distance(a.tokens, b.tokens) if a.tokens or b.tokens else 0.0


@lru_cache(maxsize=65536)
def _token_distance(a: tuple[str, ...], b: tuple[str, ...]) -> float:
    levenshtein = import_extra("rapidfuzz.distance.Levenshtein", "documents", "scoring tables")
    return float(levenshtein.distance(a, b)) / max(len(a), len(b))
