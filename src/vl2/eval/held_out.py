"""What training never sees, so that the evaluation of the built-in model is honest.

Drawn tests use one seed that no training recipe may use. Of the sets that have no test split here a part is kept back,
by what its rows share: a group of scenes, a shop, a table.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

HELD_OUT_SEED = 990_001  # of every drawn test; `vl2 data build` for training takes any other
ONE_IN = 5  # groups of NLVR and shops of SROIE
WIKITABLES_FOLD = 1  # upstream's development fold whose questions are kept back; its tables are in no other side


def is_held_out(kind: str, name: str) -> bool:
    """Tell whether a group (of NLVR) or a shop (of SROIE) is kept back."""
    plain = "".join(name.casefold().split())
    return int.from_bytes(hashlib.sha256(f"{kind}/{plain}".encode()).digest()[:4], "big") % ONE_IN == 0


def is_held_out_question(dev_folds: Collection[int]) -> bool:
    """Tell whether a question of WikiTableQuestions is kept back."""
    return WIKITABLES_FOLD in dev_folds
