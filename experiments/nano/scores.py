"""Score the built-in model on everything kept back from its training: the table of docs/nano.md.

    python -m experiments.nano.scores data/nano --out evaluated [--model CHECKPOINT] [--nlvr FOLDER] [--sroie FOLDER]

data/nano is the folder that experiments.nano.inputs made. NLVR and SROIE are scored where their folders are given. A
run that was stopped goes on; the same command twice gives the same figures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vl2.cli.main import run

DRAWN = ("text_line_en", "text_line_zh", "chart_values", "table_values")
NAMED = ("emoji_names_en", "emoji_names_zh")
COMPOSED = ("locate_objects", "count_objects", "presence")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--weights", default="auto", help="int8 or int4: what quantizing costs")
    parser.add_argument("--limit", help="so many items of each task; all by default")
    parser.add_argument("--nlvr", type=Path)
    parser.add_argument("--sroie", type=Path)
    args = parser.parse_args()
    test = args.data / "test"
    runs: list[tuple[str, tuple[str, ...], list[str]]] = [
        ("drawn", DRAWN, ["--data", str(test), "--fonts", str(test / "fonts")]),
        ("openmoji", NAMED + COMPOSED, ["--data", str(test / "openmoji")]),
        ("shapes", COMPOSED, []),
        ("noto", COMPOSED, ["--data", str(args.data / "art/noto")]),
        ("easy_vqa", ("easy_vqa",), ["--data", str(args.data / "sets/easy_vqa")]),
    ]
    if args.nlvr:
        runs.append(("nlvr", ("nlvr",), ["--data", str(args.nlvr)]))
    if args.sroie:
        runs.append(("sroie", ("sroie_lines", "sroie_fields"), ["--data", str(args.sroie)]))
    limit = ["--limit", args.limit] if args.limit else []
    worst = 0
    for name, tasks, where in runs:
        print(f"# {name}", flush=True)
        options = ["--model", args.model, "--weights", args.weights, "--batch-size", "16", *limit]
        worst = max(worst, run(["eval", "run", *tasks, "--out", str(args.out / name), *where, *options]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
