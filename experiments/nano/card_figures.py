"""Write the figures of an evaluation into the model card and into docs/nano.md.

    python -m experiments.nano.card_figures --held-out evaluated/held-out.json --scores scored

`--held-out` is what `python -m experiments.nano.held_out` wrote, `--scores` the folder of `python -m
experiments.nano.scores`. Each figure stands in three places, which all change: the metadata of the card, a row of its
tables, and a row of docs/nano.md. The row is found by its first cell. What the text says about the figures is not
changed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vl2.errors import UserError
from vl2.eval.interval import bootstrap
from vl2.eval.results import RESULTS, read_results
from vl2.eval.task import mean_score
from vl2.files import write_whole

ROOT = Path(__file__).parents[2]
CARD, PAGE = ROOT / "src/vl2/nano/README.md", ROOT / "docs/nano.md"

HELD_OUT = {
    "lines_en_short": "Lines of English of up to 24 letters, other fonts",
    "lines_en_long": "Lines of English of 25 to 60 letters",
    "lines_en_several": "Two to four lines of English",
    "lines_zh": "Lines of Chinese, other fonts",
    "locate": "Scenes of others: locate a shape",
    "count": "Scenes of others: count shapes, one to nine",
    "presence": "Scenes of others: is a shape there",
    "chart_printed": "Charts of 200 x 150 to 640 x 480 px with printed values",
    "chart_unprinted": "The same without printed values",
    "tables": "Tables set by a browser, words never seen",
    "emoji_en": "OpenMoji, named in English",
    "emoji_zh": "OpenMoji, named in Chinese",
    "nlvr": "NLVR, groups kept back",
    "sroie_lines": "SROIE, lines of receipts, shops kept back",
    "sroie_fields": "SROIE, total and date of whole receipts, shops kept back",
    "demo": "The questions of `make demo` in other words",
    "photos": "Photographs: says that it cannot tell",
}
SCORES = {  # by folder and task
    "easy_vqa/easy_vqa": "easy-VQA 1.0",
    "drawn/text_line_en": "Drawn lines of English of up to 24 letters",
    "drawn/text_line_zh": "Drawn lines of Chinese",
    "shapes/locate_objects": "Drawn scenes: locate a shape",
    "shapes/count_objects": "Drawn scenes: count shapes",
    "shapes/presence": "Drawn scenes: is a shape there",
    "drawn/chart_values": "Drawn bar charts of up to 336 x 168 px",
    "drawn/table_values": "Drawn tables of up to 336 x 168 px",
    "openmoji/emoji_names_en": "Emoji of a style never seen, named in English",
    "openmoji/emoji_names_zh": "Emoji of a style never seen, named in Chinese",
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure with its 95 % interval, in percent."""

    label: str
    count: int
    percent: float
    low: float
    high: float

    @property
    def interval(self) -> str:
        return f"{self.low:.1f} to {self.high:.1f}"


def held_out_figures(path: Path) -> list[Figure]:
    """Return the figures of a held-out.json that the card has. UserError if it is damaged or something else."""
    try:
        return [
            Figure(
                label=HELD_OUT[row["task"]],
                count=int(row["count"]),
                percent=float(row["figure"]),
                low=float(row["low"]),
                high=float(row["high"]),
            )
            for row in json.loads(path.read_text(encoding="utf-8"))["rows"]
            if row["task"] in HELD_OUT
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not what experiments.nano.held_out writes: {error!r}") from None


def score_figures(folder: Path) -> Iterator[Figure]:
    """Yield the figures of the tasks that were scored."""
    for task, label in SCORES.items():
        if (folder / task / RESULTS).is_file():
            results = read_results(folder / task)
            low, high = bootstrap(mean_score, results)
            percent = next(iter(mean_score(results).values()))
            yield Figure(label=label, count=len(results), percent=percent, low=low, high=high)


def in_card(text: str, figure: Figure) -> str:
    """Return the card with a figure changed in its metadata and in its table."""
    label = re.escape(figure.label)
    text = _changed(
        text,
        rf'(name: "{label}"\n      split: (?:.*?))\d+( items)?\n'
        r'(    metrics:\n    - type: \w+\n      name: ".*?interval )[\d.]+ to [\d.]+"\n      value: [\d.]+',
        lambda found: (
            f'{found[1]}{figure.count}{found[2] or ""}\n{found[3]}{figure.interval}"\n      value: {figure.percent:.1f}'
        ),
        figure,
    )
    return _changed(
        text,
        rf"^(\| {label} \| .*?)\d+( items)? \| [\d.]+ \| [\d.]+ to [\d.]+ \|$",
        lambda found: f"{found[1]}{figure.count}{found[2] or ''} | {figure.percent:.1f} | {figure.interval} |",
        figure,
    )


def in_page(text: str, figure: Figure) -> str:
    """Return docs/nano.md with a figure changed in its table."""
    return _changed(
        text,
        rf"^(\| {re.escape(figure.label)} \| )[\d.]+ \([\d.]+ to [\d.]+\)",
        lambda found: f"{found[1]}{figure.percent:.1f} ({figure.interval})",
        figure,
    )


def _changed(text: str, pattern: str, write: Callable[[re.Match[str]], str], figure: Figure) -> str:
    changed, number = re.subn(pattern, write, text, flags=re.MULTILINE | re.IGNORECASE)
    if number != 1:
        raise UserError(f"“{figure.label}” must stand in one row, not in {number}")
    return changed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held-out", type=Path, help="held-out.json")
    parser.add_argument("--scores", type=Path, help="the folder that experiments.nano.scores wrote")
    args = parser.parse_args()
    try:
        figures = [
            *(held_out_figures(args.held_out) if args.held_out else ()),
            *(score_figures(args.scores) if args.scores else ()),
        ]
        if not figures:
            raise UserError("there are no figures: give --held-out, --scores or both")
        card, page = (path.read_text(encoding="utf-8") for path in (CARD, PAGE))
        for figure in figures:
            card, page = in_card(card, figure), in_page(page, figure)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_whole(CARD, card)
    write_whole(PAGE, page)
    print(f"{len(figures)} figures are in {CARD.relative_to(ROOT)} and {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
