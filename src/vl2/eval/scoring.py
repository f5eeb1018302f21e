"""The usual ways to score an answer, which the tasks' protocols share."""

from __future__ import annotations

from vl2.eval.rows import texts
from vl2.eval.score.exact import exact_match, plain
from vl2.eval.score.grounding import our_boxes
from vl2.eval.score.iou import HIT, iou
from vl2.eval.score.relaxed import relaxed_accuracy
from vl2.eval.task import Item, Score


def score_exact(item: Item, answer: str) -> Score:
    return Score(value=exact_match(answer, texts(item.gold)), read=plain(answer))


def score_relaxed(item: Item, answer: str) -> Score:
    return Score(value=max(relaxed_accuracy(answer, gold) for gold in texts(item.gold)), read=answer.strip())


def score_yes_no(item: Item, answer: str) -> Score:
    """Read the first word that says yes or no, in English or Chinese."""
    said = read_yes_no(answer)
    return Score(value=float(said == item.gold), read=said)


def read_yes_no(answer: str) -> str:
    """Return "yes", "no" or ""."""
    text = plain(answer)
    if text.startswith(("no", "没", "不", "无", "否", "false")):
        return "no"
    return "yes" if text.startswith(("yes", "有", "是", "对", "true")) else ""


def score_first_box(item: Item, answer: str) -> Score:
    """Compare the first box of an answer with the gold box, both in pixels of the last image."""
    boxes = our_boxes(answer, tuple(item.notes["size"]))
    overlap = iou(boxes[0], item.gold[0]) if boxes else 0.0
    read = f"IoU {overlap:.2f}" if boxes else "no box"
    return Score(value=float(overlap >= HIT), read=read)
