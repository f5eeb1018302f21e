"""The similarity of two texts of a page: the mean of BLEU, METEOR, F1 of words, and 1 less the edit distance.

Texts with Chinese characters are cut into words by jieba, others at white space. METEOR compares stems and WordNet's
synonyms, so it needs NLTK's data set `wordnet`.

Source: `page_ocr_metric.py` of OCRBench v2, which calls NLTK and jieba as this does.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from vl2.errors import UserError
from vl2.optional_imports import import_extra

_CHINESE = re.compile(r"[\u4e00-\u9fa5]")
_WHAT = "scoring pages"


def check_wordnet() -> None:
    """Raise UserError if NLTK or its WordNet is not there."""
    corpus = import_extra("nltk.corpus", "documents", _WHAT)
    try:
        corpus.wordnet.synsets("page")
    except LookupError:
        raise UserError("METEOR needs NLTK's WordNet: python -m nltk.downloader wordnet") from None


def page_similarity(answer: str, gold: str) -> float:
    """Return the similarity, 0..1; 0 for an empty answer."""
    if not answer:
        return 0.0
    levenshtein = import_extra("rapidfuzz.distance.Levenshtein", "documents", _WHAT)
    translate = import_extra("nltk.translate", "documents", _WHAT)
    reference, hypothesis = _words(gold, answer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # BLEU warns if a text is shorter than its n-grams
        bleu = float(translate.bleu([reference], hypothesis))
    meteor = float(translate.meteor([reference], hypothesis))
    shared, total = len({*reference} & {*hypothesis}), len({*reference}) + len({*hypothesis})
    distance = float(levenshtein.distance(answer, gold)) / max(len(answer), len(gold))
    return (bleu + meteor + (2 * shared / total if total else 0.0) + 1 - distance) / 4


def _words(gold: str, answer: str) -> tuple[list[str], list[str]]:
    if not _CHINESE.search(gold + answer):
        return gold.split(), answer.split()
    jieba: Any = import_extra("jieba", "documents", _WHAT)
    jieba.setLogLevel("ERROR")  # it reports the loading of its dictionary
    return jieba.lcut(gold), jieba.lcut(answer)
