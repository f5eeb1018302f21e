"""Read one public set as records: the catalogue's entry, the caller's choices."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from pathlib import Path

from vl2.data.raw_files import read_json
from vl2.data.record import Record
from vl2.datasets.catalogue import CATALOGUE, DataSet
from vl2.datasets.conversion import Conversion, RowProblem, Table
from vl2.errors import UserError


def convert(
    name: str,
    folder: str | Path,
    *,
    split: str = "train",
    language: str | None = None,
    seed: int = 0,
    negatives: float | None = None,
    draw: Callable[[Table], bytes] | None = None,
) -> Iterator[Record | RowProblem]:
    """Yield the set's records, and a `RowProblem` for each row that has none, in the order of its files.

    `folder` is as the set's release unpacks: each converter's docstring shows it. Images of sets that keep them as
    files are paths relative to `folder`: `write_records(..., image_folder=folder)` stores them. `draw` makes a picture
    of each table where tables are text: `vl2.synth.cell_table.draw_cells`. `negatives` is the rate of queries
    for what is absent, for each query of what is there. `language="zh"` asks in Chinese for labels that
    `names_zh.json` in the folder ({"dog": "狗"}) names, and leaves out the others. UserError, before the first record,
    for a name, a folder or a setting that does not fit.
    """
    entry = _entry(name)
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    if draw is not None and not entry.draws:
        raise UserError(f"{name} has no tables to draw")
    language = language or (entry.languages[0] if entry.languages else "en")
    conversion = Conversion(
        folder=folder,
        split=split,
        source=name,
        category=entry.category,
        licence=entry.licence,
        language=language,
        seed=seed,
        negatives=_rate(name, entry, negatives),
        draw=draw,
        names=_names(name, entry, language, folder),
    )
    return entry.read(conversion)


def _entry(name: str) -> DataSet:
    if name not in CATALOGUE:
        near = difflib.get_close_matches(name, CATALOGUE, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(CATALOGUE)}"
        raise UserError(f"no data set is called {name!r}: {hint}")
    return CATALOGUE[name]


def _rate(name: str, entry: DataSet, negatives: float | None) -> float:
    if negatives is None:
        return entry.negatives or 0.0
    if entry.negatives is None and negatives:
        raise UserError(f"{name} does not say what is absent from an image: set negatives to 0")
    if not 0 <= negatives <= 1:
        raise UserError(f"negatives must be in 0..1, got {negatives}")
    return negatives


def _names(name: str, entry: DataSet, language: str, folder: Path) -> dict[str, str]:
    """Return the labels' names in a language that the set itself does not speak."""
    if not entry.languages:
        return {}  # the rows say their language; the one given is for those that do not
    if language not in entry.languages:
        raise UserError(f"{name} can be had in {', '.join(entry.languages)}, got {language!r}")
    if language == entry.languages[0]:
        return {}
    path = folder / f"names_{language}.json"
    names = read_json(path) if path.is_file() else None
    if not isinstance(names, dict) or not all(isinstance(v, str) and v.strip() for v in names.values()):
        raise UserError(f'{path} must hold the names of labels in {language}, as {{"dog": "狗"}}')
    return names
