"""RealWorldQA as lmms-eval scores it: a letter by the shared extractor, anything else exactly, without case.

Golden: tests/golden/scorers/realworldqa.json.
"""

from __future__ import annotations

from vl2.eval.score.multiple_choice import lmms_eval_letter


def realworldqa_point(answer: str, gold: str) -> float:
    gold = gold.strip()
    if gold.upper() in ("A", "B", "C", "D"):
        return float(lmms_eval_letter(answer) == gold.upper())
    return float(answer.lower().strip().rstrip(".") == gold.lower())
