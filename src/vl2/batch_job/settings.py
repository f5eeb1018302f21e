"""What a job was begun with, kept beside its output, so that it is not gone on with under other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vl2.batch_job.coco import write_whole
from vl2.errors import UserError
from vl2.resumable_log import clear

Settings = Mapping[str, str]


def check_settings(out: Path, settings: Settings) -> None:
    """Raise UserError if an output has answers of other settings, or of no job."""
    path = _beside(out)
    if not _has_answers(out):
        return
    if not path.exists():
        raise UserError(f"{out} exists and is not of a job that can be gone on with: name another file")
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} cannot be read: remove it and {out} to begin again") from None
    for name in before:
        if before[name] != settings.get(name):
            raise UserError(
                f"{out} was begun with {name} {before[name]}, now it is {settings.get(name, 'not set')}: "
                "name another output, or give --fresh to begin again"
            )


def hold_settings(out: Path, settings: Settings) -> None:
    """Remember the settings of a new job; of one that is gone on with, UserError if they differ."""
    check_settings(out, settings)
    if not (_has_answers(out) and _beside(out).exists()):
        write_whole(_beside(out), json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def forget(out: Path) -> None:
    """Remove a job's answers and settings. UserError if it is running, or if there is a file that no job wrote."""
    if _has_answers(out) and not _beside(out).exists():
        raise UserError(f"{out} exists and is not of a job, so --fresh does not remove it: name another file")
    if out.exists():
        clear(out)
    _beside(out).unlink(missing_ok=True)


def _beside(out: Path) -> Path:
    return out.with_name(out.name + ".job")


def _has_answers(out: Path) -> bool:
    return out.exists() and out.stat().st_size > 0
