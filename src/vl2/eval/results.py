"""Store a run on disk: `run.json` identifies it, `results.jsonl` has one line per item, in order.

Each result is written as soon as it is known, so a killed run can resume after its last complete line. Until all
results are done, each process appends to its own file (`results.0-of-2.jsonl`) in order of completion; rank 0 then
joins the files.
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
IMAGE_SCALE = ", image scale "  # in `RunId.tiling`, before the scale


@dataclass(frozen=True, kw_only=True)
class RunId:
    """Everything that the results of a run depend on. Runs with equal ids give equal results."""

    task: str
    protocol: str
    model: str
    weights: str  # a hash of them
    data: str  # a hash of the items
    limit: int | None
    split: str | None
    max_new_tokens: int
    tiling: str  # the rule, the tiles allowed, and the model's image scale if it is not 1
    arithmetic: str  # type and device
    parameters: int  # of the model
    judge: str | None  # model and endpoint; None if no answer is judged yet
    version: str
    # The fields below have defaults because older runs did not record them.
    size: str | None = None  # the released size of the model by its config.json: tiny, small or base
    scorer: int = 1  # `SCORER_VERSION` of vl2.eval.score
    seed: int | None = None  # of the sample of a limit; None if the first items were taken
    available: int | None = None  # the number of items without a limit
    whole: bool = False  # whether items kept for training are included
    left_out: Mapping[str, int] = field(default_factory=dict)  # the number of items not asked, by reason
    is_subset: bool = False  # whether a limit or left-out items make it a part of the benchmark

    @property
    def tiling_rule(self) -> str:
        """The tiling without the image scale, which is a property of the model and not of the test."""
        return self.tiling.partition(IMAGE_SCALE)[0]


def open_run(folder: Path, run: RunId) -> None:
    """Create the folder of a run, or check that it holds the same run. Raise UserError if it holds another run.

    A judge may be added later, because it only scores answers that exist. It becomes part of the run's id with its
    first reply (`record_judge`), so that a judge that never replies does not lock the folder.
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
    """Record the judge in the run's id."""
    _write_run(folder / RUN, {**_read_json(folder / RUN), "judge": name})


def _write_run(path: Path, run: dict[str, Any]) -> None:
    write_whole(path, json.dumps(run, ensure_ascii=False, indent=1) + "\n")


def read_run(folder: Path) -> RunId:
    """Read the id of a run. Raise UserError if the folder holds no run."""
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
    """Return the folders of the runs in a folder, which may be a run itself. Raise UserError if there are none."""
    found = [folder] if (folder / RUN).is_file() else sorted(path.parent for path in folder.glob(f"*/{RUN}"))
    if not found:
        raise UserError(f"{folder} holds no run: make one with `vl2 eval run TASK --out {folder}`")
    return found


def read_results(folder: Path) -> list[Result]:
    """Return the results of a finished run. Raise UserError if it is not finished."""
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"the run in {folder} is not finished: start it again with the same --out")
    return list(_lines(path))


def read_parts(folder: Path) -> dict[str, Result]:
    """Return the results so far of all processes, by id. Incomplete lines are ignored."""
    return {result.id: result for path in sorted(folder.glob("results*.jsonl")) for result in _lines(path)}


def _lines(path: Path) -> Iterable[Result]:
    known = fields(Result)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return  # rank 0 has just joined and removed the files
    for line in content.split(b"\n"):
        try:
            values = json.loads(line)
            yield Result(**{f.name: values[f.name] for f in known if f.name in values or not _has_default(f)})
        except (ValueError, KeyError, TypeError):
            continue  # empty, or incomplete because the process was killed: the item is asked again


class ResultLog(ResumableLog):
    """The results of one process. `append` returns when the result is on disk."""

    def __init__(self, path: Path) -> None:
        # No lock: cluster file systems often lack locks, and duplicate results are resolved by id.
        super().__init__(path, lambda line: str(line["id"]), foreign=None, sync_every=1, is_exclusive=False)


def write_results(folder: Path, results: Iterable[Result]) -> None:
    """Write all results atomically."""
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
