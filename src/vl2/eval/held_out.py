"""Define the data that is held out from training the built-in model.

Drawn tests use a seed that no training recipe may use. Of datasets without a test split a part is held out, by a key
that related rows share: a group of scenes, a shop or a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

HELD_OUT_SEED = 990_001  # for all drawn tests; training data must use another seed
ONE_IN = 5  # one in five groups of NLVR and shops of SROIE is held out
WIKITABLES_FOLD = 1  # upstream's development fold that is held out; it shares no tables with the training data


def is_held_out(kind: str, name: str) -> bool:
    """Return whether a group (of NLVR) or a shop (of SROIE) is held out."""
    plain = "".join(name.casefold().split())
    return int.from_bytes(hashlib.sha256(f"{kind}/{plain}".encode()).digest()[:4], "big") % ONE_IN == 0


def is_held_out_question(dev_folds: Collection[int]) -> bool:
    """Return whether a question of WikiTableQuestions is held out."""
    return WIKITABLES_FOLD in dev_folds
