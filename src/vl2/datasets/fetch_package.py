"""Download a package archive with its registry's own client (npm, pip or apt-get) and read its members.

The client handles mirrors, proxies and its cache, and verifies the archive's hash. No code of a package is run:
archives are downloaded, and only the wanted members are read.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vl2.errors import UserError

Registry = Literal["npm", "pypi", "debian"]
MAX_MEMBER_BYTES = 2**28
TIMEOUT_S = 1800
_PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")


@dataclass(frozen=True, kw_only=True)
class Package:
    """A pinned package, and the license of the files used from it."""

    registry: Registry
    name: str
    version: str  # for Debian "" means the installed release's version
    licence: str  # SPDX
    attribution: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}".strip()


def download(package: Package, folder: Path) -> Path:
    """Download the archive of a package into an empty folder and return the file.

    Raise UserError if the client is missing, fails or takes more than TIMEOUT_S.
    """
    client, arguments = _commands(package, folder)
    if shutil.which(client) is None:
        raise UserError(f"getting {package} needs {client}, which is not installed")
    try:
        done = subprocess.run(
            [client, *arguments], cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(f"{client} did not get {package} in {TIMEOUT_S} s") from None
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if done.returncode or len(files) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()
        raise UserError(f"{Path(client).name} could not get {package}: {said[-1][:200]}")
    return files[0]


def _commands(package: Package, folder: Path) -> tuple[str, list[str]]:
    exact = f"{package.name}=={package.version}"
    if package.registry == "npm":
        return "npm", ["pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}"]
    if package.registry == "pypi":
        # Allow wheels only, because building a source distribution would run its code. Every machine gets the same
        # wheel: it is read, not installed, and another platform's would not have the hash that was pinned.
        wheel = ["--no-deps", "--only-binary", ":all:", *_PLATFORM, "--dest", str(folder)]
        return sys.executable, ["-m", "pip", "download", "--quiet", *wheel, exact]
    return "apt-get", ["download", package.name + (f"={package.version}" if package.version else "")]


def read_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the wanted files of a .tgz, a wheel or a .deb, in the archive's order."""
    try:
        if archive.suffix == ".whl":
            yield from _zip_members(archive, wanted)
        elif archive.suffix == ".deb":
            yield from _tar_members(io.BytesIO(_deb_data_tar(archive)), wanted)
        else:
            with archive.open("rb") as file:
                yield from _tar_members(file, wanted)
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UserError(f"the archive {archive.name} cannot be read: {error}") from None


def _zip_members(archive: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as opened:
        for entry in opened.infolist():
            if wanted(entry.filename) and entry.file_size <= MAX_MEMBER_BYTES:
                yield entry.filename, opened.read(entry)


def _tar_members(file: object, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=file, mode="r:*") as opened:  # type: ignore[call-overload]
        for member in opened:
            if member.isfile() and member.size <= MAX_MEMBER_BYTES and wanted(member.name):
                content = opened.extractfile(member)
                assert content is not None, member.name
                yield member.name, content.read()


def _deb_data_tar(archive: Path) -> bytes:
    """Return the tar with the files of a Debian package."""
    unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], capture_output=True, check=False)
    if unpacked.returncode:
        raise UserError(f"{archive.name} cannot be unpacked: {unpacked.stderr.decode(errors='replace').strip()[:200]}")
    return unpacked.stdout
