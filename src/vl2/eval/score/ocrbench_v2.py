"""The scores of OCRBench v2, 0..1, one rule per type of question.

| types | rule |
|---|---|
| question answering, recognition | contains a gold text; a long one by its similarity from 0.5 |
| multiple choice | the letters of the answer are the gold ones |
| counting | contains the number, or its relative distance from the first number |
| formulas | contains the gold formula, spaces aside |
| tables, charts | TEDS |
| documents | edit distance of the trees of headings and lines |
| key information | share of keys with equal values |
| grounding, spotting | IoU; F1 of words with IoU above 0.5 and equal text |
| pages, passages, translation | mean of BLEU, METEOR, F1 of words, and 1 less the edit distance |

Source: Yuliang-Liu/MultimodalOCR, `OCRBench_v2/eval_scripts` (commit 794c36d6), whose oddities are kept: a chart's
values are compared with spaces between their characters, and the last box of an answer counts.
Golden: tests/golden/scorers/ocrbench_v2.json.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

from vl2.eval.score.boxes import Box
from vl2.eval.score.page_similarity import page_similarity
from vl2.eval.score.spotting import read_words, spotting_f1
from vl2.eval.score.teds import teds
from vl2.eval.score.text_rules import edit_distance
from vl2.eval.score.tree_edit import TreeNode, tree_distance

MIN_SIMILARITY = 0.5
MAX_COORDINATE = 1000
SHORT_ANSWER = "简答"  # in a question about handwriting: the answer is a passage
_FENCED = re.compile(r"```(?:python|json)?\n(.*?)\n```", re.DOTALL | re.IGNORECASE)
_PAIR = re.compile(r'["\']?([\w\s]+)["\']?\s*[:=]\s*["\']?([^\n,"\'{}]+)["\']?')
_NUMBER = r"\s*(\d{1,9})\s*"
_BOX = re.compile(rf"[(\[]{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}[)\]]")
_LONG_GAP = re.compile(r"(\s{50})\s+")  # would make _PAIR take cubic time
_BETWEEN_LETTERS = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")
_CLEANING = (
    (r"<bos>|<eos>|<pad>|<unk>", ""), (r"\s##(\S)", r"\1"), (r"\\\s", r"\\"), (r"\s\*\s\*\s", "**"), (r"{\s", "{"),
    (r"\s}", "}"), (r"\s}", "}"), (r"\\begin\s", r"\\begin"), (r"\\end\s", r"\\end"),
    (r"\\end{table}", "\\\\end{table} \n\n"), ("[\n*_]", " "),
)  # fmt: skip


def contains(answer: str, golds: Sequence[Any], clean: Callable[[str], str], is_short: Callable[[str], bool]) -> float:
    """Score 1 if the answer contains a short gold text; a long one by its similarity, or 0 below 0.5."""
    said, best = clean(answer), 0.0
    for gold in map(clean, map(str, golds)):
        if is_short(gold):
            best = max(best, float(gold in said))
        else:
            longest = max(len(said), len(gold))
            similarity = 1 - edit_distance(said, gold) / longest if longest else 1.0
            best = max(best, similarity if similarity >= MIN_SIMILARITY else 0.0)
    return best


def one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def score_english(answer: str, golds: Sequence[Any]) -> float:
    return contains(answer, golds, lambda text: one_line(text.lower()), lambda gold: len(gold.split()) < 5)


def score_with_case(answer: str, golds: Sequence[Any]) -> float:
    return contains(answer, golds, one_line, lambda gold: len(gold.split()) < 5)


def score_chinese(answer: str, golds: Sequence[Any]) -> float:
    def clean(text: str) -> str:
        return one_line(text.lower()).replace(" ", "")

    return contains(answer, golds, clean, lambda gold: len(gold.split(",")) < 4)


def score_letters(answer: str, golds: Sequence[Any]) -> float:
    return float("".join(char for char in answer if char.isalpha()) == golds[0])


def score_count(answer: str, golds: Sequence[Any], rule: str) -> float:
    best = 0.0
    for gold in (one_line(str(gold).lower()) for gold in golds):
        if rule == "exact match":
            best = max(best, float(gold in answer))
        elif rule == "regression" and (found := re.search(r"\d+", answer)):
            said, right = int(found.group()[:20]), int(gold)  # Python refuses thousands of digits
            closeness = 1 - abs(said - right) / right if 0 < said < 2 * right else 0.0
            best = max(best, closeness if closeness > MIN_SIMILARITY else 0.0)
    return best


def score_formula(answer: str, golds: Sequence[Any]) -> float:
    said = one_line(answer).replace(" ", "")
    return float(any(one_line(str(gold)).replace(" ", "") in said for gold in golds))


def score_chinese_formula(answer: str, golds: Sequence[Any]) -> float:
    """Score a formula without `\\text{}` around its words."""
    if answer.lower() == "nan":
        return 0.0
    answer, gold = (re.sub(r"\\text\{([^{}]*)\}", r"\1", text) for text in (answer, str(golds[0])))
    return score_formula(answer, [gold])


def score_handwriting(answer: str, golds: Sequence[Any], question: str) -> float:
    """Score a passage by its similarity, and chosen letters if they occur in order, with any usual separator."""
    gold = str(golds[0])
    if SHORT_ANSWER in question:
        return page_similarity(answer, gold)
    return float(any(between.join(gold) in answer for between in _BETWEEN_LETTERS))


def score_html_table(answer: str, golds: Sequence[Any]) -> float:
    line = answer.replace("\n", "")
    start = next((at for tag in ("<body", "<table") if (at := line.find(tag)) >= 0), None)
    if start is None:
        return 0.0
    return _teds_or_zero(as_page(line[start:]), as_page(str(golds[0])))


def score_markdown_table(answer: str, golds: Sequence[Any]) -> float:
    return _teds_or_zero(_table_page(answer), _table_page(str(golds[0])))


def _teds_or_zero(answer: str, gold: str) -> float:
    try:
        return teds(answer, gold)
    except ValueError:  # a span that is not a number
        return 0.0


def as_page(table: str) -> str:
    """Add the tags of table, body and page that are missing."""
    table = table.replace("\n", "")
    opens, closes = "<table" in table, "</table>" in table
    table = ("" if opens or (closes and opens) else "<table>") + table + ("" if closes else "</table>")
    table = table if "<body>" in table else f"<body>{table}</body>"
    return table if "<html>" in table else f"<html>{table}</html>"


def _table_page(markdown: str) -> str:
    """Return a Markdown table as a page. The second line is taken for the rule below the header."""
    lines = markdown.strip("```markdown").strip("```").strip().split("\n")  # noqa: B005 - as the program strips
    rows = []
    for line in [lines[0], *lines[2:]]:
        cells = line.strip().split("|")[1:-1]
        rows.append("".join(f"<td>{' ' if set(cell) == {' '} else cell.strip()}</td>" for cell in cells))
    return f"<html><body><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table></body></html>"


def score_chart(answer: str, golds: Sequence[Any]) -> float:
    gold = golds[0] if isinstance(golds[0], Mapping) else read_dict(str(golds[0]))
    said = _read_python_dict(answer) if answer else {}
    return _teds_or_zero(_dict_page(said), _dict_page(gold)) if said else 0.0


def _dict_page(values: Mapping[Any, Any]) -> str:
    rows = (f"  <tr><td>{key}</td><td>{' '.join(str(value))}</td></tr>\n" for key, value in values.items())
    return f"<html><body><table>\n{''.join(rows)}</table></body></html>"


def _read_python_dict(answer: str) -> Mapping[Any, Any]:
    """Read a dictionary that may be fenced, assigned to a name, and have comments and text after it."""
    fenced = _FENCED.findall(answer)
    text = max(fenced, key=len) if fenced else answer.strip()
    text = re.sub(r"#.*", "", re.sub(r"^\s*\w+\s*=\s*", "", text.strip(), count=1))
    found = _literal(text[: text.rfind("}") + 1] if "}" in text else text)
    return found if isinstance(found, dict) else {}


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)  # literals only, no names and no calls
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def read_dict(answer: str) -> dict[str, str]:
    """Read key information: JSON, a Python dictionary, or else pairs of words with a colon or equals sign."""
    fenced = _FENCED.search(answer)
    text = fenced[1] if fenced else answer.strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = _literal(text)
        if found is None:
            found = {key.strip(): value.strip() for key, value in _PAIR.findall(_LONG_GAP.sub(r"\1", text))}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        return {}
    return {key.strip(): str(value).strip() for key, value in found.items()}


def score_keys(answer: str, golds: Sequence[Any]) -> float:
    """Return the share of keys, of the gold and the answer, that have equal values, for the best of the golds."""
    said = read_dict(answer)
    return max((_share_of_keys(said, gold) for gold in _combinations(golds[0])), default=0.0)


def _combinations(gold: Any) -> list[dict[str, Any]]:
    """Return a dictionary for every choice of one value for each key."""
    if not isinstance(gold, Mapping):
        text = str(gold).strip('"')
        try:
            gold = json.loads(text)
        except ValueError:
            gold = _literal(text)
        gold = _literal(gold) if isinstance(gold, str) else gold
        if not isinstance(gold, Mapping):
            return []
    values = [value if isinstance(value, list) else [value] for value in gold.values()]
    return [dict(zip(gold, chosen, strict=True)) for chosen in product(*values)]


def _share_of_keys(said: Mapping[str, Any], gold: Mapping[str, Any]) -> float:
    keys = {key for key in {*said, *gold} if said.get(key) is not None or gold.get(key) is not None}
    if not keys:
        return 0.0
    right = (key for key in keys if said.get(key) is not None and gold.get(key) is not None)
    return sum(_plain_value(said[key]) == _plain_value(gold[key]) for key in right) / len(keys)


def _plain_value(value: Any) -> str:
    return one_line(str(value).lower()).replace(" ", "")


def box_overlap(box: Any, gold: Any) -> float:
    """Return the IoU of two boxes of whole numbers, or 0 if one is not four numbers."""
    try:
        a, b = [int(v) for v in box], [int(v) for v in gold]
        shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    except (TypeError, ValueError, IndexError, OverflowError):
        return 0.0
    return shared / union if union else 0.0


def score_box(answer: str, gold: Box) -> float:
    """Return the IoU of the last box of an answer with coordinates up to 1,000."""
    found = [[int(v) for v in match.groups()] for match in _BOX.finditer(answer)]
    found = [box for box in found if max(box) <= MAX_COORDINATE]
    return box_overlap(found[-1], gold) if found else 0.0


def score_with_position(answer: str, golds: Sequence[Any], box: Any) -> float:
    """Return the mean of the scores of a text and of its box, under the keys `answer` and `bbox`."""
    said = read_dict(answer)
    text = score_english(said["answer"], golds) if "answer" in said else 0.0
    return text / 2 + (box_overlap(_literal(said["bbox"]), box) / 2 if "bbox" in said else 0.0)


def score_spotting(answer: str, boxes: Sequence[Sequence[int]], contents: Sequence[str]) -> float:
    return spotting_f1(read_words(answer), boxes, contents)


def score_document(answer: str, golds: Sequence[Any]) -> float:
    """Return 1 less the edit distance of the trees of headings with their lines, over the larger number of nodes.

    Two lines match unless one of them is blank: only the structure is compared.
    """

    def differ(one: str, other: str) -> float:
        return float(not one.split() or not other.split())

    trees = _heading_tree(answer), _heading_tree(str(golds[0]))
    distance = tree_distance(*trees, differ)
    return 1 - distance / max(tree.count() for tree in trees)


def _heading_tree(markdown: str) -> TreeNode[str]:
    """Return a tree with the headings below the root, and every other line below the first heading with that text."""
    title: TreeNode[str] = TreeNode("TITLE")
    root, named = TreeNode("ROOT", [title]), {"TITLE": title}
    named["ROOT"] = root
    heading = ""
    for line in map(_clean_line, markdown.split("\n")):
        if line.startswith("#"):
            heading = line.replace("#", "")
            node = TreeNode(heading)
            root.children.append(node)
            named.setdefault(heading, node)
        else:
            node = TreeNode(line)
            (_find(root, heading) if heading else title).children.append(node)
    return root


def _find(root: TreeNode[str], label: str) -> TreeNode[str]:
    """Return the first node with a label, in preorder; it exists."""
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node.label == label:
            return node
        waiting += reversed(node.children)
    raise AssertionError(f"no node {label!r}")


def _clean_line(line: str) -> str:
    for pattern, by in _CLEANING:
        line = re.sub(pattern, by, line)
    return line
