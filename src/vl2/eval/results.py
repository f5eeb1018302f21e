"""A run on disk: `run.json` says what it is, `results.jsonl` has one line per item, in order.

A line is on disk as soon as its answer is known, so a run that was killed goes on after its last whole line. Until all
are done they stand in the order in which the answers ended, in a file of each process (`results.0-of-2.jsonl`); the
first process joins them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from vl2.errors import UserError
from vl2.eval.task import Result
from vl2.files import write_whole
from vl2.resumable_log import ResumableLog, json_line

RESULTS = "results.jsonl"
RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class RunId:
    """What a run is of. Two runs with the same id give the same results."""

    task: str
    protocol: str
    model: str
    weights: str  # a hash of them
    data: str  # a hash of the items
    limit: int | None
    split: str | None
    max_new_tokens: int
    tiling: str  # the rule, and the tiles allowed
    arithmetic: str  # type and device
    parameters: int  # of the model
    judge: str | None  # model and endpoint; None while no answer is judged
    version: str
    # What runs of before did not write down has a default.
    size: str | None = None  # the released size that the model has by its config.json: tiny, small or base
    scorer: int = 1  # `SCORER_VERSION` of vl2.eval.score
    seed: int | None = None  # of the sample that a limit takes; None: the first items
    available: int | None = None  # items that a run without a limit asks
    whole: bool = False  # also the items that are kept for training
    left_out: Mapping[str, int] = field(default_factory=dict)  # items not asked, by why
    is_subset: bool = False  # by a limit, or by something left out that the benchmark has


def open_run(folder: Path, run: RunId) -> None:
    """Make the folder, or check that it holds the same run. UserError for another one.

    A judge may come later: it reads what the rules left open, and the answers stay. It belongs to the run once it has
    read one of them (`record_judge`), so that one that never answers does not lock the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    if not path.exists():
        _write_run(path, asdict(replace(run, judge=None)))
        return
    found = _read_json(path)
    wanted = asdict(run) if found.get("judge") is not None else asdict(replace(run, judge=None))
    other = [name for name in wanted if found.get(name) != wanted[name]]
    if other:
        name = other[0]
        raise UserError(
            f"{folder} holds another run ({name} {found.get(name)!r}, now {wanted[name]!r}): choose another --out"
        )


def record_judge(folder: Path, name: str) -> None:
    """Write down who reads the answers that the rules left open."""
    _write_run(folder / RUN, {**_read_json(folder / RUN), "judge": name})


def _write_run(path: Path, run: dict[str, Any]) -> None:
    write_whole(path, json.dumps(run, ensure_ascii=False, indent=1) + "\n")


def read_run(folder: Path) -> RunId:
    """Read what a run is of. UserError for a folder without one."""
    if not (folder / RUN).is_file():
        raise UserError(f"{folder} holds no run: {RUN} is missing")
    found = _read_json(folder / RUN)
    try:
        return RunId(**{f.name: found[f.name] for f in fields(RunId) if f.name in found or not _has_default(f)})
    except KeyError as missing:
        raise UserError(f"{folder / RUN} has no {missing}") from None


def _has_default(f: Field[Any]) -> bool:
    return f.default is not MISSING or f.default_factory is not MISSING


def find_runs(folder: Path) -> list[Path]:
    """Return the folders of the runs in a folder, which may be one itself."""
    found = [folder] if (folder / RUN).is_file() else sorted(path.parent for path in folder.glob(f"*/{RUN}"))
    if not found:
        raise UserError(f"{folder} holds no run: make one with `vl2 eval run TASK --out {folder}`")
    return found


def read_results(folder: Path) -> list[Result]:
    """Return the finished results. UserError for a run that is not complete."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"the run in {folder} is not finished: start it again with the same --out")
    return list(_lines(path))


def read_parts(folder: Path) -> dict[str, Result]:
    """Return what was done so far by its id, the lines of all processes, a torn last line left out."""
    return {result.id: result for path in sorted(folder.glob("results*.jsonl")) for result in _lines(path)}


def _lines(path: Path) -> Iterable[Result]:
    names = [field.name for field in fields(Result)]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return  # joined and removed by the first process just now
    for line in content.split(b"\n"):
        try:
            values = json.loads(line)
            yield Result(**{name: values[name] for name in names})
        except (ValueError, KeyError, TypeError):
            continue  # empty, or cut short when the process was killed: it is done again


class ResultLog(ResumableLog):
    """The results of one process, each on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        # No lock: many a cluster's file system has none, and results are told apart by their ids.
        super().__init__(path, lambda line: str(line["id"]), foreign=None, sync_every=1, is_exclusive=False)


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write all results at once, completely or not at all."""
    part = folder / f"{RESULTS}.part"
    part.write_bytes(b"".join(json_line(asdict(result)) for result in results))
    part.replace(folder / RESULTS)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"cannot read {path}: an object is needed")
    return found
