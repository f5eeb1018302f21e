"""Detect whether an answer has begun to repeat itself."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PERIOD = 128  # tokens; longer repeated passages are rare, and the token limit soon ends them
MIN_LOOP = 32  # tokens of all repeats together; shorter ones, a rule in a table or a row of dots, are no loop


def ends_in_loop(ids: Sequence[int], repeats: int) -> bool:
    """Return whether the ids end with a passage repeated `repeats` times in a row, at least MIN_LOOP tokens in all."""
    for period in range(1, min(MAX_PERIOD, len(ids) - 1) + 1):
        length = max(period * repeats, MIN_LOOP + (-MIN_LOOP) % period)
        if (
            ids[-1] == ids[-1 - period]
            and length <= len(ids)
            and ids[len(ids) - length : -period] == ids[len(ids) - length + period :]
        ):
            return True
    return False
