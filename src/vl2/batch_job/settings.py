"""What a job was begun with, kept beside its output, so that it is not gone on with under other settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from vl2.batch_job.coco import write_whole
from vl2.errors import UserError

Settings = Mapping[str, str]


def hold_settings(out: Path, settings: Settings) -> None:
    """Remember the settings of a new job; of one that is gone on with, UserError if they differ."""
    path = out.with_name(out.name + ".job")
    if not path.exists():
        if out.exists() and out.stat().st_size > 0:
            raise UserError(f"{out} exists and is not of a job that can be gone on with: name another file")
        write_whole(path, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} cannot be read: remove it and {out} to begin again") from None
    for name in {**before, **settings}:
        if before.get(name) != settings.get(name):
            raise UserError(
                f"{out} was begun with {name} {before.get(name, 'not set')}, now it is "
                f"{settings.get(name, 'not set')}: name another output, or give --fresh to begin again"
            )


def forget(out: Path) -> None:
    """Remove a job's output and settings."""
    for path in (out, out.with_name(out.name + ".job")):
        path.unlink(missing_ok=True)
