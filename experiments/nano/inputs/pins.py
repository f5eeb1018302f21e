"""The pinned inputs: which archives and files there must be, at which version, with which SHA-256.

`pins.txt` has one line an input: registry, name, version, hash. Files that no registry has come from a folder of one's
own, and their registry is `given`. An input that is missing or changed is an error before anything is made of it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from vl2.datasets.fetch_package import Package, Registry, download
from vl2.errors import UserError

PINS = Path(__file__).with_name("pins.txt")
GIVEN = "given"
CHUNK_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Pin:
    """One input; `name` of a given file is its path in the folder."""

    registry: str
    name: str
    version: str
    sha256: str

    def package(self) -> Package:
        """Return the package that a registry's client is asked for. Its licence is told where it is written."""
        return Package(registry=cast(Registry, self.registry), name=self.name, version=self.version, licence="")


def read_pins(path: Path = PINS) -> list[Pin]:
    """Read the list; blank lines and those behind # are passed over."""
    pins = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        parts = line.split("#")[0].split()
        if parts and len(parts) != 4:
            raise UserError(f"{path.name}, line {number}: registry, name, version and hash are needed, got {line!r}")
        if parts:
            pins.append(Pin(registry=parts[0], name=parts[1], version=parts[2], sha256=parts[3]))
    return pins


def sha256_of(path: Path) -> str:
    """Return the hash of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def check(pin: Pin, path: Path) -> None:
    """Raise UserError if a file is not the one that was pinned."""
    if not path.is_file():
        raise UserError(f"{pin.name} is missing: {path} is not there")
    found = sha256_of(path)
    if found != pin.sha256:
        raise UserError(f"{path} is not the pinned {pin.name} {pin.version}: its SHA-256 is {found}, not {pin.sha256}")


class PinnedArchives:
    """The archives of a folder, got from their registries where they are not there yet, each checked once."""

    def __init__(self, folder: Path, pins: list[Pin] | None = None) -> None:
        self._folder = folder
        self._pins = {(pin.registry, pin.name): pin for pin in (read_pins() if pins is None else pins)}
        self._checked: dict[tuple[str, str], Path] = {}

    def get(self, registry: str, name: str) -> Path:
        """Return the archive of a package. UserError if it is not pinned, cannot be had or is another one."""
        key = (registry, name)
        if key not in self._checked:
            pin = self._pins.get(key)
            if pin is None:
                raise UserError(f"{name} of {registry} is not in {PINS.name}")
            found = next(iter(self._at(pin)), None) or _fetched(pin, self._folder)
            check(pin, found)
            self._checked[key] = found
        return self._checked[key]

    def fetch_all(self) -> Iterator[tuple[Pin, Path]]:
        """Get and check every archive, before anything is made of any."""
        for pin in self._pins.values():
            if pin.registry != GIVEN:
                yield pin, self.get(pin.registry, pin.name)

    def _at(self, pin: Pin) -> list[Path]:
        return sorted((self._folder / place_of(pin)).glob("*"))


def place_of(pin: Pin) -> str:
    """Return the folder of a package among the archives."""
    return f"{pin.registry}/{pin.name.replace('/', '+')}-{pin.version.replace(':', '+')}"


def _fetched(pin: Pin, folder: Path) -> Path:
    """Download into a folder that gets its name when the archive is whole."""
    target = folder / place_of(pin)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        archive = download(pin.package(), Path(scratch))
        target.mkdir(exist_ok=True)
        return Path(shutil.move(archive, target / archive.name))
