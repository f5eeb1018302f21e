"""Extract fields of SROIE's receipts with a model that errs on purpose, and count what comes out.

    python benchmarks/extract_receipts.py --sroie data/sroie --to extracted

A receipt's true fields take the place of a model's answer. Most answers are then damaged: cut off once or each time,
ended by the guard against loops, or given a wrong key, a wrong type or words around the object. Whatever comes out must
be valid and true. Each cut answer must be asked for again or reported. The pictures are real, and go the way that
`vl2 extract` takes; only the model is not. Half a minute; writes `receipts.jsonl` and `receipts.csv`.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pyarrow.parquet as pq
from PIL import Image

from vl2.extract import extract
from vl2.extract.documents import file_documents
from vl2.extract.table import write_table
from vl2.infer.reply import Reply, Usage
from vl2.infer.vlm import Request

FIELDS = ("company", "date", "address", "total")
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {name: {"type": ["string", "null"], "maxLength": 200} for name in FIELDS},
    "required": list(FIELDS),
    "additionalProperties": False,
}
# For each kind of damage, the attempts that it meets.
DAMAGE = {"none": 0, "cut": 1, "loop": 1, "wrong key": 1, "wrong type": 2, "words around": 1, "always cut": 99}


class ErringModel:
    """Answers each receipt with its true fields, except for the first attempts, which it damages."""

    def __init__(self, truth: dict[str, dict[str, Any]]) -> None:
        self.truth = truth
        self.kinds = dict(zip(truth, [list(DAMAGE)[i % len(DAMAGE)] for i in range(len(truth))], strict=True))
        self.attempts: collections.Counter[str] = collections.Counter()

    def batch(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Request) -> Reply:
        (turn,) = request.messages  # type: ignore[misc]
        key = fingerprint(turn.images[0])  # type: ignore[union-attr]
        self.attempts[key] += 1
        kind, fields = self.kinds[key], self.truth[key]
        text = json.dumps(fields)
        if self.attempts[key] > DAMAGE[kind]:
            return reply(text)
        if kind in ("cut", "always cut"):
            return reply(text[: len(text) * 2 // 3], "length")
        if kind == "loop":
            return reply(text[: len(text) // 2] + "0" * 40, "repetition")
        if kind == "wrong key":
            return reply(text.replace('"total"', '"sum"'))
        if kind == "wrong type":
            return reply(json.dumps({**fields, "total": [fields["total"]]}))
        return reply(f"Here it is: {text}")


def reply(text: str, finish_reason: Any = "stop") -> Reply:
    usage = Usage(prompt_tokens=500, visual_tokens=421, completion_tokens=len(text) // 3)
    return Reply(text=text, token_ids=(), finish_reason=finish_reason, usage=usage, image_sizes=((1, 1),))


def fingerprint(image: Image.Image) -> str:
    return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def write_receipts(sroie: Path, folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Write the pictures of the first receipts, and return their fields by fingerprint, in the order of the files."""
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for path in sorted(sroie.glob("train-*.parquet")):
        rows += pq.read_table(path, columns=["id", "image", *FIELDS]).to_pylist()
    truth: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: str(row["id"]))[:count]:
        path = folder / f"{row['id']}.jpg"
        path.write_bytes(row["image"])
        with Image.open(path) as image:
            truth[fingerprint(image)] = {name: row[name] for name in FIELDS}
    return truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sroie", type=Path, required=True, help="folder with SROIE's rows, train-*.parquet")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    truth = write_receipts(arguments.sroie, arguments.to / "pictures", arguments.count)
    if len(truth) != arguments.count:
        sys.exit(f"only {len(truth)} different receipts, {arguments.count} were wanted")
    model = ErringModel(truth)
    documents = file_documents([str(arguments.to / "pictures")])
    found = list(extract(model, documents, SCHEMA, with_places=False))
    lines = [extraction.to_dict() for extraction in found]
    (arguments.to / "receipts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    write_table(lines, arguments.to / "receipts.csv")

    validator = jsonschema.Draft202012Validator(SCHEMA)
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in DAMAGE}
    wrong = 0
    for (key, fields), extraction in zip(truth.items(), found, strict=True):
        kind = model.kinds[key]
        is_right = extraction.value == fields and validator.is_valid(extraction.value)
        is_reported = extraction.value is None and extraction.error is not None
        counts[kind]["right" if is_right else "reported" if is_reported else "wrong"] += 1
        wrong += not (is_reported if kind == "always cut" else is_right and extraction.attempts == DAMAGE[kind] + 1)
    for kind, counted in counts.items():
        print(f"{kind:14}{dict(counted)}")
    print(f"{sum(model.attempts.values())} answers for {len(found)} receipts; {wrong} not as wanted")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
