"""The recorded scores of two public harnesses; tests/golden/scorers/README.md says how they were made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "golden" / "scorers"


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert len(content["cases"]) == content["n"]
    return content


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = golden(name)["cases"]
    return found
