"""Score a checkpoint on the held-out pictures: one table beside the marks, and a contact sheet of each task.

    python -m experiments.nano.held_out nano --out evaluated [--limit 100] [--only count tables] [--real FOLDER]

Fonts (Debian packages), OpenMoji and easy-VQA are fetched into --data once. --real holds what cannot be fetched, those
of nlvr/, sroie/, photos/ (Parquet) and chartqa/ (see `vl2 eval run chartqa --help`) that there are. A run that was
stopped goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from experiments.nano.held_out.catalogue import ENTRIES, Entry
from experiments.nano.held_out.contact_sheet import draw_sheet
from experiments.nano.held_out.fonts import fetch_fonts
from experiments.nano.held_out.result_table import write_table
from vl2.datasets.fetchable import fetch
from vl2.errors import UserError
from vl2.eval.choose_items import limited
from vl2.eval.run_task import EvalOptions, run_task
from vl2.eval.task import DataSource, Result
from vl2.infer.vlm import load

CACHE = Path("~/.cache/vl2/held-out")
ART_PX = 192
ON_SHEET = 32
FIRST = 4  # items of each task that are drawn before anything is asked
LIMIT = 400  # of a task that is drawn without end


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint's folder, or nano; `none` draws the sheets alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--limit", type=int, help=f"so many items of each task; {LIMIT} drawn and all others by default"
    )
    parser.add_argument("--only", nargs="+", choices=[entry.task.name for entry in ENTRIES], metavar="TASK")
    parser.add_argument("--data", type=Path, default=CACHE, help=f"what is fetched ({CACHE})")
    parser.add_argument("--real", type=Path, help="what cannot be fetched")
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    try:
        return score(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def score(args: argparse.Namespace) -> int:
    data = args.data.expanduser()
    fetch_fonts(data / "fonts")
    for _ in fetch(("openmoji", "easy_vqa"), data, side_px=ART_PX):
        pass
    chosen: list[tuple[Entry, DataSource]] = []
    not_run: dict[str, str] = {}
    for entry in ENTRIES:
        name = entry.task.name
        if args.only and name not in args.only:
            continue
        if entry.needs and (args.real is None or not (args.real / entry.needs).is_dir()):
            not_run[name] = f"--real has no folder {entry.needs}"
            continue
        source = DataSource(data=args.real if entry.needs or name == "photos" else data)
        list(limited(entry.task, source, FIRST))  # so that a missing tool or file is an error before anything is asked
        chosen.append((entry, source))
    vlm = load(args.model) if args.model != "none" else None
    found: dict[str, tuple[Entry, Sequence[Result]]] = {}
    (args.out / "sheets").mkdir(parents=True, exist_ok=True)
    for entry, source in chosen:
        name = entry.task.name
        results: list[Result] = []
        if vlm is not None:
            limit = args.limit or (LIMIT if entry.task.is_drawn else None)
            options = EvalOptions(limit=limit, batch_size=args.batch_size)
            results = run_task(vlm, entry.task, source, args.out / "runs" / name, options, model=args.model)
            found[name] = (entry, results)
            write_table(args.out, args.model, found, not_run)
        shown = list(islice(limited(entry.task, source, args.limit or ON_SHEET), ON_SHEET))
        font = data / "fonts" / "zh" / "LXGWWenKai-Regular.ttf"
        sheet = draw_sheet(shown, font, {result.id: result for result in results})
        sheet.save(args.out / "sheets" / f"{name}.png")
    if vlm is not None:
        print(write_table(args.out, args.model, found, not_run))
    return 0


if __name__ == "__main__":
    sys.exit(main())
