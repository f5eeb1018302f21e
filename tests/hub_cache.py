"""A cache in the layout of the Hugging Face hub: blobs by their hash, and revisions that link to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def add_repo(
    cache: Path,
    hub_id: str,
    files: Path | Mapping[str, bytes],
    *,
    commit: str = COMMIT,
    ref: str = "main",
    kind: str = "models",
) -> Path:
    """Add a revision with these files, or those of a folder, and return the folder of the repository."""
    repo = cache / f"{kind}--{hub_id.replace('/', '--')}"
    content = {path.name: path.read_bytes() for path in files.iterdir()} if isinstance(files, Path) else files
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit, encoding="utf-8")
    for name, data in content.items():
        blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        os.symlink(f"../../blobs/{blob.name}", repo / "snapshots" / commit / name)
    return repo


def bytes_of(folder: Path) -> int:
    """Return the bytes of the files in a folder; links count nothing."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
