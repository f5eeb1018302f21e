"""The recorded scores of two public harnesses; tests/golden/scorers/README.md says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vl2.eval.task import Item, Protocol, Result

FOLDER = Path(__file__).parents[2] / "golden" / "scorers"


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert len(content["cases"]) == content["n"]
    return content


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = golden(name)["cases"]
    return found


def result_of(protocol: Protocol, said: str, gold: Any, *, part: str = "") -> Result:
    """Return the result of an answer under a protocol."""
    score = protocol.score(Item(id="1", question="?", gold=gold), said)
    return Result(
        id="1", part=part, cluster="", prompt="", answer=said, read=score.read, gold=gold, score=score.value,
        is_undecided=False, finish_reason="stop", prompt_tokens=1, completion_tokens=1,
    )  # fmt: skip
