"""The one with the most and the one with the least: how they are asked for, and how the answer is written.

The answer gives the number first, and then the name beside it: `478 (Ulm)`. Asked for the name alone, the model has to
compare all numbers and find the name before it writes anything, which it did not learn.
"""

from __future__ import annotations

import random
import re

# Of the most, and of the least.
EXTREMES = {
    "en": (("highest", "largest", "greatest"), ("lowest", "smallest")),
    "zh": (("高", "大", "多"), ("低", "小", "少")),
}
# The same said by verbs.
LEADS = {
    "en": (
        ("ranks first", "is on top", "is ahead of the others", "beats all others", "comes out best", "comes first"),
        ("ranks last", "is at the bottom", "is behind the others", "lags behind", "comes out worst", "comes last"),
    ),
    "zh": (("排第一", "居首位", "排在最前", "领先"), ("排最后", "居末位", "排在最后", "垫底")),
}

NUMBER = re.compile(r"[$€£]?\d(?:[\d.,]*\d)?%?")
NUMBER_AND_NAME = re.compile(rf"({NUMBER.pattern})(?: \((.+)\)|（(.+)）)")


def words_for(which: int, language: str, rng: random.Random) -> dict[str, str]:
    """Return what the names in questions about the most (0) or the least (1) stand for."""
    superlatives, verbs = EXTREMES[language][which], LEADS[language][which]
    return {"most": rng.choice(superlatives), "extreme": rng.choice(superlatives), "leads": rng.choice(verbs)}


def number_and_name(number: str, name: str, language: str) -> str:
    """Return the answer that gives a number and whose it is."""
    return f"{number}（{name}）" if language == "zh" else f"{number} ({name})"


def parts_of(answer: str) -> tuple[str, ...]:
    """Return the number and the name of such an answer, or any other answer whole."""
    found = NUMBER_AND_NAME.fullmatch(answer)
    return (found[1], found[2] or found[3]) if found else (answer,)
