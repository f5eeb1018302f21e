"""Lay out what the built-in model is trained and tested on: texts, fonts, sprites, easy-VQA.

    python -m experiments.nano.prepare_data --texts FOLDER --to data/nano

FOLDER holds enwiki.parquet and zhwiki.parquet, or other tables with a column `text`. Fonts are Debian packages, got by
`apt-get download` and unpacked beside the system, not installed; sprites and easy-VQA come by `vl2 data fetch`.

    TO/text        en.txt and zh.txt, one passage a line, and the same as JSONL for `vl2 data convert text_table`
    TO/fonts       fonts of the training
    TO/art         sprite sets of the training
    TO/sets        public sets
    TO/test        kept back: text/en.txt, text/zh.txt, fonts, openmoji
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pyarrow.parquet as pq

from vl2.datasets.fetchable import fetch

TEXTS = {"enwiki": "en", "zhwiki": "zh"}
ONE_IN = 20  # passages that are kept back
ART_PX = 192
ART = (
    "noto", "noto_v1", "fluent", "fluent_mono", "twemoji", "emojione", "emojione_mono", "emojione_v1", "fxemoji",
    "streamline",
)  # fmt: skip

TRAIN_FONTS = (
    "fonts-cantarell", "fonts-cascadia-code", "fonts-comic-neue", "fonts-crosextra-caladea", "fonts-crosextra-carlito",
    "fonts-dejavu-core", "fonts-dejavu-extra", "fonts-ebgaramond", "fonts-firacode", "fonts-hack", "fonts-inconsolata",
    "fonts-jetbrains-mono", "fonts-lato", "fonts-liberation", "fonts-linuxlibertine", "fonts-montserrat",
    "fonts-oldstandard", "fonts-open-sans", "fonts-paratype", "fonts-play", "fonts-quicksand", "fonts-roboto-slab",
    "fonts-roboto-unhinted", "fonts-sil-andika", "fonts-sil-charis", "fonts-sil-gentium-basic", "fonts-tuffy",
    "fonts-urw-base35", "fonts-vollkorn",
    "fonts-arphic-gbsn00lp", "fonts-arphic-gkai00mp", "fonts-arphic-ukai", "fonts-arphic-uming", "fonts-noto-cjk",
    "fonts-wqy-zenhei",
)  # fmt: skip
TEST_FONTS = (
    "fonts-karla", "fonts-manrope", "fonts-mononoki", "fonts-quattrocento", "fonts-yrsa-rasa",
    "fonts-lxgw-wenkai", "fonts-wqy-microhei",
)  # fmt: skip
# Weights that print hardly uses, and instances of one design by the dozen.
_LEFT_OUT = re.compile(r"thin|hairline|extralight|ultralight|alternates|NL-|semibold|medium|symbols|dingbat", re.I)


def write_texts(texts: Path, to: Path) -> None:
    """Write the passages of each table: every twentieth into the test's folder."""
    for name, language in TEXTS.items():
        rows = [row for row in pq.read_table(texts / f"{name}.parquet").to_pylist() if row["text"].strip()]
        kept = [row for number, row in enumerate(rows) if number % ONE_IN]
        held_out = [row for number, row in enumerate(rows) if not number % ONE_IN]
        for folder, part in ((to / "text", kept), (to / "test/text", held_out)):
            folder.mkdir(parents=True, exist_ok=True)
            lines = "".join(" ".join(row["text"].split()) + "\n" for row in part)
            (folder / f"{language}.txt").write_text(lines, encoding="utf-8")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        (to / "text" / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def write_fonts(packages: tuple[str, ...], to: Path) -> None:
    """Download Debian packages and copy the font files out of them."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for package in packages:
            place = Path(scratch) / package
            place.mkdir()
            subprocess.run(["apt-get", "download", "-qq", package], cwd=place, check=True)
            subprocess.run(["dpkg", "-x", str(next(place.glob("*.deb"))), str(place)], check=True)
            for file in sorted(place.rglob("*")):
                is_font = file.suffix.lower() in (".ttf", ".otf", ".ttc") and file.is_file() and not file.is_symlink()
                if is_font and not _LEFT_OUT.search(file.name):
                    shutil.copyfile(file, to / file.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--to", type=Path, default=Path("data/nano"))
    args = parser.parse_args()
    write_texts(args.texts, args.to)
    write_fonts(TRAIN_FONTS, args.to / "fonts")
    write_fonts(TEST_FONTS, args.to / "test/fonts")
    for names, folder in ((ART, "art"), (("openmoji",), "test"), (("easy_vqa",), "sets")):
        for name, count in fetch(names, args.to / folder, side_px=ART_PX):
            print(f"{args.to / folder / name}: {'there already' if count is None else f'{count} things'}")


if __name__ == "__main__":
    main()
