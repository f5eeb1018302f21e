"""Write the goldens in which the harnesses differ from one another: POPE's figures and the lengths of ANLS.

    python tools/make_scorer_goldens.py tests/golden/scorers \
        --lmms-eval lmms_eval-0.7.3/ --vlmevalkit VLMEvalKit-e8e78f05/ --vlmevalkit VLMEvalKit-0a04a1d2/

Each folder is an unpacked source distribution or a checkout, called by its version. Their own scoring functions are
run, from their files and in this process; nothing of them is copied. It needs numpy and pandas, and neither harness
installed: what their files import beyond that, and the scoring does not use, is replaced by empty modules.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# (prediction, gold, category). Clear and unclear answers to questions of both gold answers, and what only looks clear.
POPE = [
    ("Yes", "Yes", "random"), ("yes", "Yes", "random"), ("Yes.", "Yes", "popular"), ("Yes, one", "Yes", "adversarial"),
    ("No", "Yes", "random"), ("no", "Yes", "popular"), ("No.", "Yes", "popular"), ("maybe", "Yes", "adversarial"),
    ("", "Yes", "random"), ("I cannot tell", "Yes", "adversarial"), ("yes and no", "Yes", "popular"),
    ("No", "No", "random"), ("no", "No", "popular"), ("Not at all", "No", "popular"), ("Yes", "No", "adversarial"),
    ("YES", "No", "random"), ("unsure", "No", "random"), (" no ", "No", "adversarial"), ("nothing", "No", "popular"),
    ("yes", "Yes", "random,popular"), ("no", "Yes", "popular,adversarial"), ("Yes", "No", "random,adversarial"),
]  # fmt: skip
# What a file of predictions cannot hold is left out: an empty one comes back from a spreadsheet as "nan".
POPE_SETS = {
    "mixed": [row for row in POPE if row[0]],
    "single categories": [row for row in POPE if "," not in row[2] and row[0]],
    "all clear": [("yes", "Yes", "random"), ("no", "Yes", "random"), ("no", "No", "random"), ("yes", "No", "random")],
    "all unclear": [("maybe", "Yes", "random"), ("maybe", "No", "random")],
    "unclear where gold is yes": [("yes", "Yes", "random"), ("maybe", "Yes", "random"), ("no", "No", "random")],
}
# (prediction, golds): white space and letters whose upper or lower case is longer.
ANLS = [
    ("Paris", ["Paris"]), ("paris", ["PARIS"]), ("Pariss", ["Paris"]), ("Par", ["Paris"]),
    ("  Paris  ", ["Pariss"]), ("Par   is", ["Paris"]), ("new    york", ["new work"]), ("new york", ["new    work"]),
    ("a\tb\nc", ["abc"]), ("  x ", ["x"]), ("   xy   ", ["xz"]), ("12 June 2019 ", ["12 June 2018"]),
    ("Straße", ["Strasse"]), ("STRASSE", ["straße"]), ("groß", ["gros"]), ("ß", ["s"]), ("eﬃcient", ["efficient"]),
    ("İstanbul", ["Istanbul"]), ("ŉ", ["n"]), ("", ["x"]), ("", [""]), ("   ", ["x"]), ("x", ["   "]), ("   ", [""]),
    ("total 12", ["12", "total: 12"]), ("$ 4.50", ["$4.50", "4.50"]), ("北京 市", ["北京市"]), ("half", ["ha"]),
    ("ab", ["a"]), ("  ab", ["a"]), ("North Carolina University  Press", ["North Carolina University Press"]),
]  # fmt: skip


def stand_in(name: str, **contents: Any) -> None:
    """Let `name` be imported, with these contents alone."""
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    module.__path__ = []  # type: ignore[attr-defined]
    sys.modules[name] = module


def run_file(path: Path) -> types.ModuleType:
    """Run a file of a harness as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"harness_{abs(hash(str(path)))}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def functions_of(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Return some functions of a folder's files, each run by itself: the files import far more than these need."""
    found: dict[str, Any] = {}
    space: dict[str, Any] = {"re": __import__("re"), "string": __import__("string"), "os": __import__("os")}
    for path in sorted(folder.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name in names:
                exec(compile(ast.Module([node], []), str(path), "exec"), space)
                found[node.name] = space[node.name]
    assert set(found) == set(names), f"{folder} has no {set(names) - set(found)}"
    return found


class LmmsEval:
    def __init__(self, folder: Path) -> None:
        stand_in("sacrebleu")
        nothing = lambda *_, **__: lambda function: function  # noqa: E731
        for name in ("lmms_eval", "lmms_eval.api"):
            stand_in(name)
        stand_in("lmms_eval.api.registry", register_aggregation=nothing, register_metric=nothing)
        self._metrics = run_file(folder / "lmms_eval/api/metrics.py")
        self._pope = run_file(folder / "lmms_eval/tasks/pope/utils.py")

    def anls(self, prediction: str, golds: Sequence[str]) -> float:
        return float(self._metrics.anls(list(golds), [prediction])["anls"])

    def pope(self, rows: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        scored = [
            self._pope.pope_process_results({"answer": gold, "question_id": n}, [said])
            for n, (said, gold, _) in enumerate(rows)
        ]
        figures = ("accuracy", "precision", "recall", "f1_score")
        return {
            name.removesuffix("_score"): 100
            * getattr(self._pope, f"pope_aggregate_{name}")([line[f"pope_{name}"] for line in scored])
            for name in figures
        }


class VLMEvalKit:
    def __init__(self, folder: Path) -> None:
        import pandas

        kept = functions_of(folder / "vlmeval/smp", ("process_punctuation", "listinstr", "istype"))
        stand_in("vlmeval")
        stand_in("vlmeval.smp", load=pandas.read_pickle, d2df=None, **kept)
        self._vqa = run_file(folder / "vlmeval/dataset/utils/vqa_eval.py")
        self._yorn = run_file(folder / "vlmeval/dataset/utils/yorn.py")

    def anls(self, prediction: str, golds: Sequence[str]) -> float:
        line = self._vqa.process_line({"answer": str(list(golds)), "prediction": prediction}, method="anls")
        return float(self._vqa.hit_calculate([line], "DocVQA_VAL")[0])

    def pope(self, rows: Sequence[tuple[str, str, str]]) -> dict[str, float]:
        import pandas

        data = pandas.DataFrame(
            {
                "answer": [gold for _, gold, _ in rows],
                "extracted": [self._yorn.YOrN_Extraction(said) for said, _, _ in rows],
                "category": [category for *_, category in rows],
            }
        )
        data["score"] = data["answer"] == data["extracted"]
        with tempfile.TemporaryDirectory() as scratch:
            data.to_pickle(f"{scratch}/marked.pkl")
            (line,) = self._yorn.POPE_rating(f"{scratch}/marked.pkl").query("split == 'Overall'").to_dict("records")
        return {
            "f1": float(line["Overall"]),
            "accuracy": float(line["acc"]),
            "precision": float(line["precision"]),
            "recall": float(line["recall"]),
        }


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lmms-eval", type=Path, required=True)
    parser.add_argument("--vlmevalkit", type=Path, action="append", required=True)
    given = parser.parse_args()
    harnesses: dict[str, LmmsEval | VLMEvalKit] = {given.lmms_eval.name: LmmsEval(given.lmms_eval)}
    for folder in given.vlmevalkit:
        harnesses[folder.name] = VLMEvalKit(folder)
    pope = [
        {"case": name, "rows": [list(row) for row in rows],
         "expected": {harness: rounded(it.pope(rows)) for harness, it in harnesses.items()}}
        for name, rows in POPE_SETS.items()
    ]  # fmt: skip
    anls = [
        {"prediction": said, "answers": golds,
         "expected": {harness: rounded(it.anls(said, golds)) for harness, it in harnesses.items()}}
        for said, golds in ANLS
    ]  # fmt: skip
    for name, description, cases in (
        ("pope_harnesses", "POPE's accuracy, precision, recall and F1 in percent over a set of answers.", pope),
        ("anls_harnesses", "ANLS of one question, 0..1: where white space and case change a text's length.", anls),
    ):
        content = {"metric": name, "description": description, "harnesses": list(harnesses), "n": len(cases)}
        text = json.dumps({**content, "cases": cases}, ensure_ascii=False, indent=1)
        (given.out / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
