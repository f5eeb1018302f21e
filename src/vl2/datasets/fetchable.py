"""What `vl2 data fetch` gets by name, with packages and licenses: data sets, sprites, fonts and style sheets."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vl2.datasets.fetch_emoji import Drawing, Named, read_cldr, read_iconify, read_openmoji, write_emoji
from vl2.datasets.fetch_package import Package, download, read_members
from vl2.datasets.fetch_styles import HANDWRITING, STYLE_SHEETS, write_handwriting, write_style_sheets
from vl2.errors import UserError, name_hint

CLDR = (
    Package(registry="npm", name="cldr-annotations-full", version="48.2.0", licence="Unicode-3.0"),
    Package(registry="npm", name="cldr-annotations-derived-full", version="48.2.0", licence="Unicode-3.0"),
)
NOTO = Package(registry="npm", name="@iconify-json/noto", version="1.2.9", licence="Apache-2.0")
FLUENT = Package(registry="npm", name="@iconify-json/fluent-emoji-flat", version="1.2.6", licence="MIT")
TWEMOJI = Package(
    registry="npm", name="@iconify-json/twemoji", version="1.2.5", licence="CC-BY-4.0", attribution="Twitter"
)
NOTO_V1 = Package(registry="npm", name="@iconify-json/noto-v1", version="1.2.5", licence="Apache-2.0")
FXEMOJI = Package(registry="npm", name="@iconify-json/fxemoji", version="1.2.2", licence="Apache-2.0")
EMOJIONE = Package(
    registry="npm", name="@iconify-json/emojione", version="1.2.3", licence="CC-BY-4.0", attribution="EmojiOne"
)
EMOJIONE_MONO = Package(
    registry="npm", name="@iconify-json/emojione-monotone", version="1.2.1", licence="CC-BY-4.0", attribution="EmojiOne"
)
FLUENT_MONO = Package(registry="npm", name="@iconify-json/fluent-emoji-high-contrast", version="1.2.6", licence="MIT")
EMOJIONE_V1 = Package(
    registry="npm", name="@iconify-json/emojione-v1", version="1.2.3", licence="CC-BY-SA-4.0", attribution="EmojiOne"
)
STREAMLINE = Package(
    registry="npm",
    name="@iconify-json/streamline-emojis",
    version="1.2.4",
    licence="CC-BY-4.0",
    attribution="Streamline",
)
OPENMOJI = Package(registry="npm", name="openmoji", version="17.0.0", licence="CC-BY-SA-4.0", attribution="OpenMoji")
EASY_VQA = Package(registry="pypi", name="easy-vqa", version="1.0", licence="MIT")
_EASY_VQA = re.compile(r"^easy_vqa/data/((?:train|test)/(?:questions\.json|images/\d+\.png)|answers\.txt)$")


class Archives:
    """Downloads each package once, into a folder that the caller deletes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._got: dict[Package, Path] = {}
        self._names: Named | None = None

    def __getitem__(self, package: Package) -> Path:
        if package not in self._got:
            folder = self._folder / str(len(self._got))
            folder.mkdir()
            self._got[package] = download(package, folder)
        return self._got[package]

    def names(self) -> Named:
        if self._names is None:
            self._names = read_cldr(self[CLDR[0]], self[CLDR[1]])
        return self._names


Writer = Callable[[Path, Archives, int], int]  # (empty folder, archives, side_px) -> number of items written


@dataclass(frozen=True, kw_only=True)
class Fetchable:
    """An entry that can be fetched: its description, its packages and the function that writes its folder."""

    what: str
    packages: tuple[Package, ...]
    write: Writer


def _emoji(name: str, package: Package, read: Callable[[Path, Named], Iterator[Drawing]], what: str) -> Fetchable:
    def write(folder: Path, archives: Archives, side_px: int) -> int:
        return write_emoji(folder, name, package, read(archives[package], archives.names()), archives.names(), side_px)

    return Fetchable(what=f"sprite set: {what}", packages=(package, *CLDR), write=write)


def _write_cldr(folder: Path, archives: Archives, side_px: int) -> int:
    names = {char: {"en": en, "zh": zh} for char, (en, zh) in archives.names().items()}
    (folder / "names.json").write_text(json.dumps(names, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return len(names)


def write_easy_vqa(folder: Path, archive: Path) -> int:
    """Write both splits of easy-VQA into a folder, and return the number of images.

    Each of train/ and test/ gets questions.json and images/0.png and so on: 64 px images of one colored shape. The
    file answers.txt lists all answers.
    """
    pictures = 0
    for name, data in read_members(archive, lambda member: bool(_EASY_VQA.match(member))):
        file = folder / name.removeprefix("easy_vqa/data/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        pictures += file.suffix == ".png"
    if not pictures:
        raise UserError(f"{archive.name} has no images: its layout has changed")
    return pictures


def _write_easy_vqa(folder: Path, archives: Archives, side_px: int) -> int:
    return write_easy_vqa(folder, archives[EASY_VQA])


def _write_handwriting(folder: Path, archives: Archives, side_px: int) -> int:
    return write_handwriting(folder, ((package, archives[package]) for package in HANDWRITING))


def _write_style_sheets(folder: Path, archives: Archives, side_px: int) -> int:
    return write_style_sheets(folder, ((package, archives[package]) for package in STYLE_SHEETS))


FETCHABLE: Mapping[str, Fetchable] = {
    "noto": _emoji("noto", NOTO, read_iconify, "emoji, shaded"),
    "fluent": _emoji("fluent", FLUENT, read_iconify, "emoji, flat colors"),
    "twemoji": _emoji("twemoji", TWEMOJI, read_iconify, "emoji, flat"),
    "noto_v1": _emoji("noto_v1", NOTO_V1, read_iconify, "emoji, the older Noto, rounder"),
    "fxemoji": _emoji("fxemoji", FXEMOJI, read_iconify, "emoji, flat, from Firefox OS"),
    "emojione": _emoji("emojione", EMOJIONE, read_iconify, "emoji, lightly shaded"),
    "emojione_mono": _emoji("emojione_mono", EMOJIONE_MONO, read_iconify, "emoji, black only"),
    "fluent_mono": _emoji("fluent_mono", FLUENT_MONO, read_iconify, "emoji, black only, outlined"),
    "emojione_v1": _emoji("emojione_v1", EMOJIONE_V1, read_iconify, "emoji, the older EmojiOne"),
    "streamline": _emoji("streamline", STREAMLINE, read_iconify, "emoji, outlined and colored"),
    "openmoji": _emoji("openmoji", OPENMOJI, read_openmoji, "emoji, outlined; suited as a held-out style"),
    "cldr": Fetchable(what="names of emoji in English and Chinese", packages=CLDR, write=_write_cldr),
    "easy_vqa": Fetchable(
        what="drawn shapes, 48,248 questions; for `vl2 data convert`", packages=(EASY_VQA,), write=_write_easy_vqa
    ),
    "handwriting": Fetchable(
        what="fonts that look written by hand; for `vl2 data build form`",
        packages=HANDWRITING,
        write=_write_handwriting,
    ),
    "style_sheets": Fetchable(
        what="CSS of Bootstrap, Bulma, Pico and others; for `vl2 data build web_page`",
        packages=tuple(STYLE_SHEETS),
        write=_write_style_sheets,
    ),
}


def check_names(names: tuple[str, ...]) -> None:
    """Raise UserError, with a suggestion, if a name is not in FETCHABLE."""
    for name in names:
        if name not in FETCHABLE:
            raise UserError(f"nothing to fetch is called {name!r}: {name_hint(name, FETCHABLE)}")


def fetch(names: tuple[str, ...], to: Path, *, side_px: int = 0) -> Iterator[tuple[str, int | None]]:
    """Create the folder `to`/NAME for each name; yield the name and its number of items, None if it already exists.

    A folder appears only when it is complete. `side_px` renders SVG to PNG of that side; 0 keeps SVG.
    """
    check_names(names)
    if side_px and not 16 <= side_px <= 1024:
        raise UserError(f"the side of images must be 16 to 1024 px, got {side_px}")
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vl2-fetch-") as temporary:
        archives = Archives(Path(temporary))
        for name in dict.fromkeys(names):
            target = to / name
            yield name, None if target.exists() else _make(FETCHABLE[name], target, archives, side_px)


def _make(entry: Fetchable, target: Path, archives: Archives, side_px: int) -> int:
    unfinished = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        unfinished.chmod(0o755)
        count = entry.write(unfinished, archives, side_px)
        (unfinished / "LICENCE.txt").write_text(_licence_text(entry), encoding="utf-8")
        try:
            os.replace(unfinished, target)
        except OSError:
            # Another process may have finished the same folder in the meantime. Then that one stays.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return count


def _licence_text(entry: Fetchable) -> str:
    return "".join(
        f"{package} ({package.registry}): {package.licence}{', by ' * bool(package.attribution)}{package.attribution}\n"
        for package in entry.packages
    )
