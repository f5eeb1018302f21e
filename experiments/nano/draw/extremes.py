"""How the one with the most and the one with the least are asked for: by superlatives and by verbs."""

from __future__ import annotations

import random

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


def words_for(which: int, language: str, rng: random.Random) -> dict[str, str]:
    """Return what the names in questions about the most (0) or the least (1) stand for."""
    superlatives, verbs = EXTREMES[language][which], LEADS[language][which]
    return {"most": rng.choice(superlatives), "extreme": rng.choice(superlatives), "leads": rng.choice(verbs)}
