"""Keep copies of checkpoints at a URL that fsspec opens, such as s3:// or gs://.

A copy is the files of a checkpoint below `step-N/`, and `manifest.json` with their sizes, which is written last. Object
stores cannot rename a folder, so a copy counts only if it has a manifest and every file has the size in it. A removal
begins with the manifest for the same reason.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vl2.data.store.locations import DataFile, data_file, storage_errors
from vl2.errors import UserError
from vl2.train.tensor_files import sync

MANIFEST = "manifest.json"
_FORMAT = 1
_COPY_BYTES = 16 << 20
_STEP = re.compile(r"step-(\d{8,})")
_FILE_NAME = re.compile(r"\w[\w.-]*")
_PROBE = ".writable"


class CheckpointStore:
    """The copies of one run's checkpoints at a URL."""

    def __init__(self, url: str) -> None:
        """Prepare to use a URL. Raise UserError if fsspec, or its package for this protocol, is not installed."""
        self.url = url.rstrip("/")
        self._root = data_file(self.url)

    def check(self, run_folder: Path) -> None:
        """Raise UserError if the URL cannot be written, or is inside the run folder, where it would be removed."""
        if "file" in _protocols(self._root.fs):
            here, folder = Path(self._root.path).resolve(), run_folder.resolve()
            if here == folder or folder in here.parents:
                raise UserError(f"run.checkpoints must be outside the run folder {run_folder}, got {self.url}")
        probe = self._file(_PROBE)
        try:
            with probe.create() as out:
                out.write(b"\n")
            with storage_errors(probe.name):
                self._root.fs.rm_file(probe.path)
        except UserError as error:
            raise UserError(f"cannot write to run.checkpoints, does its bucket or folder exist? {error}") from None

    def steps(self) -> list[int]:
        """Return the steps of the whole copies, in order."""
        return sorted(step for step, sizes in self._list().items() if self._is_whole(step, sizes))

    def begun_steps(self) -> list[int]:
        """Return the steps of all copies, whole or not, in order."""
        return sorted(self._list())

    def name(self, step: int) -> str:
        """Return the URL of a step's copy."""
        return self._file(_folder(step)).name

    def begin(self, step: int) -> None:
        """Prepare to write a step's copy: an older copy of that step no longer counts."""
        self._remove_file(self._file(_folder(step), MANIFEST))

    def put(self, path: Path, step: int) -> None:
        """Copy one file of a checkpoint. Raise UserError if this fails."""
        with path.open("rb") as source, self._file(_folder(step), path.name).create() as out:
            shutil.copyfileobj(source, out, _COPY_BYTES)

    def finish(self, step: int, sizes: Mapping[str, int]) -> None:
        """Write the manifest of a step's copy. Raise UserError if a file is missing or has another size than given."""
        found = self._list().get(step, {})
        for name, size in sizes.items():
            if found.get(name) != size:
                there = f"has {found[name]:,} bytes" if name in found else "is missing"
                raise UserError(f"{name} {there}, it should have {size:,} bytes")
        with self._file(_folder(step), MANIFEST).create() as out:
            out.write(json.dumps({"format": _FORMAT, "step": step, "files": dict(sizes)}).encode())

    def remove(self, step: int) -> None:
        """Remove a step's copy, its manifest first."""
        folder = self._file(_folder(step))
        self._remove_file(self._file(_folder(step), MANIFEST))
        with storage_errors(folder.name):
            self._root.fs.rm(folder.path, recursive=True)

    def download(self, step: int, folder: Path) -> None:
        """Copy a whole checkpoint into an empty local folder. Raise UserError if this fails."""
        sizes = self._manifest(step)
        if sizes is None:
            raise UserError(f"{self.name(step)} has no manifest")
        for name, size in sizes.items():
            target = folder / name
            with self._file(_folder(step), name).open() as source, target.open("wb") as out:
                shutil.copyfileobj(source, out, _COPY_BYTES)
            sync(target)
            if target.stat().st_size != size:
                raise UserError(f"{self.name(step)}/{name} ended after {target.stat().st_size:,} of {size:,} bytes")

    def _file(self, *parts: str) -> DataFile:
        path = "/".join((self._root.path.rstrip("/"), *parts))
        return DataFile(fs=self._root.fs, path=path, name="/".join((self.url, *parts)))

    def _list(self) -> dict[int, dict[str, int]]:
        """Return the sizes of all files, by step and name."""
        self._root.fs.invalidate_cache()
        with storage_errors(self.url):
            found: dict[str, Any] = self._root.fs.find(self._root.path, detail=True)
        steps: dict[int, dict[str, int]] = {}
        for path, about in found.items():
            folder, name = path.rsplit("/", 2)[-2:]
            match = _STEP.fullmatch(folder)
            if match is not None and path == self._file(folder, name).path:
                steps.setdefault(int(match[1]), {})[name] = int(about["size"])
        return steps

    def _is_whole(self, step: int, sizes: Mapping[str, int]) -> bool:
        wanted = self._manifest(step) if MANIFEST in sizes else None
        return wanted is not None and all(sizes.get(name) == size for name, size in wanted.items())

    def _manifest(self, step: int) -> dict[str, int] | None:
        """Return the sizes of a copy's files by name, or None if its manifest is not valid."""
        try:
            about = json.loads(self._file(_folder(step), MANIFEST).read())
            if (about["format"], about["step"]) != (_FORMAT, step):
                return None
            sizes = {str(name): int(size) for name, size in about["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
        return sizes if all(_FILE_NAME.fullmatch(name) for name in sizes) else None

    def _remove_file(self, file: DataFile) -> None:
        with storage_errors(file.name):
            if self._root.fs.exists(file.path):
                self._root.fs.rm_file(file.path)


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
