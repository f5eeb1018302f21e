"""Yes or no, read off an answer: VLMEvalKit looks for the words, lmms-eval at the first four characters.

Golden: `parsed` in tests/golden/scorers/mme.json, `extracted` in pope.json.
"""

from __future__ import annotations

from vl2.eval.score.vqa import vlmevalkit_punctuation


def vlmevalkit_yes_no(answer: str) -> str:
    """Return "yes" or "no" when exactly one of the two words occurs, else ""."""
    words = vlmevalkit_punctuation(answer.lower()).split()
    if ("yes" in words) == ("no" in words):
        return ""
    return "yes" if "yes" in words else "no"


def lmms_eval_yes_no(answer: str) -> str:
    """Return "yes" or "no" by the beginning of the answer, else "". "Nothing" begins with no."""
    text = answer.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "")
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else ""
