"""`vl2 serve` as a user starts it, under pictures meant to stop it: others are answered, and memory comes back.

`benchmarks/hostile_load.py` does the same with the whole table, and with tighter bounds on a quiet machine.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from . import hostile_pictures as pictures
from .attacks import SCANS, VANISHING, Attack, attack, left_by, picture_requests, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured and limited otherwise elsewhere")

LEFT_BYTES = 150 << 20
DEEP = replace(
    SCANS,
    name="deep grey",
    bodies=picture_requests(3, 3, lambda: pictures.flat_png(8000, 5000, depth=16, color_type=0, value=9)),
)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "answers"), [(SCANS, {"400"}), (DEEP, {"200"}), (VANISHING, {"left"})],
                         ids=lambda value: value.name if isinstance(value, Attack) else "")  # fmt: skip
def test_others_are_answered_while_one_client_attacks_with_pictures(what: Attack, answers: set[str]) -> None:
    with served() as (process, url):
        effect = attack(url, process.pid, what)
        left_bytes = left_by(url, process.pid, what, effect, LEFT_BYTES)
    assert set(effect.statuses) == answers
    assert not effect.failures
    # Against hanging, on machines that are busy: without processes that can be killed these were minutes.
    assert max(effect.health_s) < 5
    assert max(effect.chat_s) < 30
    assert effect.growth_bytes < 1_000_000_000
    assert left_bytes <= LEFT_BYTES
