"""What a folder of inputs holds, file by file, so that a run finds out in a second that one is missing or changed."""

from __future__ import annotations

from pathlib import Path

from experiments.nano.inputs.pins import sha256_of
from vl2.errors import UserError

MANIFEST = "SHA256SUMS"


def write_manifest(folder: Path) -> None:
    """List every file with its hash, as sha256sum does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256_of(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def check_manifest(folder: Path) -> None:
    """Raise UserError if a file of the list is missing or is another than when it was written."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} has no inputs: make them with python -m experiments.nano.inputs --to {folder}")
    for line in path.read_text(encoding="utf-8").splitlines():
        digest, _, name = line.partition("  ")
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing: delete the folder and make it again")
        if sha256_of(folder / name) != digest:
            raise UserError(f"{folder / name} has changed: delete the folder and make it again")
