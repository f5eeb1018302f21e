"""Fetching by name, with fake clients in place of the registries: what is laid out, what is refused."""

from __future__ import annotations

import io
import json
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from vl2.cli.main import run
from vl2.data.record import Record
from vl2.datasets import convert
from vl2.datasets.fetchable import FETCHABLE, Archives, fetch
from vl2.synth.catalog import find_source
from vl2.synth.source import generate
from vl2.synth.sprites import read_sprite_set

CIRCLE = '<circle cx="8" cy="8" r="6" fill="{}"/>'
# character -> its key in the icon set, its names, its group
EMOJI = {
    "🍎": ("red-apple", "red apple", "红苹果", "Food & Drink"),
    "🐄": ("cow", "cow", "奶牛", "Animals & Nature"),
    "🏠": ("house", "house", "房子", "Travel & Places"),
    "❤": ("red-heart", "red heart", "红心", "Symbols"),
    "🇧🇸": ("flag-bahamas", "flag: Bahamas", "旗: 巴哈马", "Flags"),
    "👋🏻": ("waving-light", "waving hand: light skin tone", "挥手: 较浅肤色", "People & Body"),
}


def npm_archive(path: Path, files: dict[str, str]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def cldr(kind: str, language: str, names: dict[str, str]) -> dict[str, str]:
    entries = {char: {"default": ["x"], "tts": [name]} for char, name in names.items()}
    return {f"{kind}/{language}/annotations.json": json.dumps({kind: {"annotations": entries}})}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an `npm` first on the path that copies archives of a folder, and point pip at the same folder."""
    shelf, bin_ = tmp_path / "shelf", tmp_path / "bin"
    shelf.mkdir()
    bin_.mkdir()
    plain = {char: names for char, names in EMOJI.items() if len(char) == 1}
    longer = {char: names for char, names in EMOJI.items() if len(char) > 1}
    for package, kind, part in (
        ("cldr-annotations-full@48.2.0", "annotations", plain),
        ("cldr-annotations-derived-full@48.2.0", "annotationsDerived", longer),
    ):
        english = cldr(kind, "en", {char: names[1] for char, names in part.items()})
        chinese = cldr(kind, "zh", {char: names[2] for char, names in part.items()})
        npm_archive(shelf / package, {**english, **chinese})
    icons = {names[0]: {"body": CIRCLE.format("red")} for names in EMOJI.values()} | {"unnamed": {"body": ""}}
    # Sets write the variation selector (fe0f) or not; names are found all the same.
    chars = {"-".join(f"{ord(c):x}" for c in char): names[0] for char, names in EMOJI.items()} | {"1f999": "unnamed"}
    chars["2764-fe0f"] = chars.pop("2764")
    noto = {
        "icons.json": json.dumps({"icons": icons, "width": 16, "height": 16}),
        "chars.json": json.dumps(chars),
        "metadata.json": json.dumps({"categories": {names[3]: [names[0]] for names in EMOJI.values()}}),
    }
    npm_archive(shelf / "noto@1.2.9", noto)
    # An older set does not say what its icons draw: "flag-for-bahamas" and a name that is no longer in use.
    older = dict.fromkeys(
        ("redapple", "house", "flag-for-bahamas", "waving-hand-light-skin-tone", "cow-face"), icons["cow"]
    )
    npm_archive(shelf / "noto-v1@1.2.5", {**noto, "icons.json": json.dumps({"icons": older}), "chars.json": "{}"})
    (bin_ / "npm").write_text(
        f"#!{sys.executable}\n"
        "import shutil, sys\n"
        "name = sys.argv[-1].rpartition('/')[2]\n"
        "to = sys.argv[sys.argv.index('--pack-destination') + 1]\n"
        f"source = {str(shelf)!r} + '/' + name\n"
        f"open({str(tmp_path / 'asked')!r}, 'a').write(name + '\\n')\n"
        "try:\n    shutil.copy(source, to + '/archive.tgz')\n"
        "except OSError:\n    sys.exit('npm error 404 not found')\n"
    )
    (bin_ / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_))
    return tmp_path


def test_a_sprite_set_is_fetched_and_drawn_with_its_names_and_its_licence(registry: Path, capsys) -> None:
    pytest.importorskip("resvg_py")
    assert run(["data", "fetch", "noto", "cldr", "--to", str(registry / "assets")]) == 0
    noto = registry / "assets" / "noto"
    sprites = {sprite.en: (sprite.zh, sprite.group) for sprite in read_sprite_set(str(noto)).sprites}
    assert sprites == {
        "red apple": ("红苹果", "Food & Drink"),
        "cow": ("奶牛", "Animals & Nature"),
        "house": ("房子", "Travel & Places"),
        "red heart": ("红心", "Symbols"),
        "flag of the Bahamas": ("巴哈马的旗帜", "Flags"),
    }
    assert "@iconify-json/noto 1.2.9 (npm): Apache-2.0" in (noto / "LICENCE.txt").read_text()
    assert json.loads((registry / "assets" / "cldr" / "names.json").read_text())["🐄"] == {"en": "cow", "zh": "奶牛"}
    # Each package was downloaded once, though two of the names need CLDR.
    asked = (registry / "asked").read_text().split()
    assert sorted(asked) == ["cldr-annotations-derived-full@48.2.0", "cldr-annotations-full@48.2.0", "noto@1.2.9"]
    records = list(generate(find_source("scene")(art=str(noto), tasks=("detect",)), 6))
    assert {record.licence for record in records} == {"Apache-2.0"}
    # A heart and a flag are no things that lie about in a scene.
    labels = {labeled.label for record in records for labeled in record.objects}
    assert labels <= {"red apple", "cow", "house", "红苹果", "奶牛", "房子"}
    assert {record.licence for record in generate(find_source("in_context")(), 1)} == {"CC0-1.0"}


def test_icons_that_say_no_character_are_known_by_their_names(registry: Path) -> None:
    assert run(["data", "fetch", "noto_v1", "--to", str(registry / "assets"), "-q"]) == 0
    sprites = {sprite.en: sprite.zh for sprite in read_sprite_set(str(registry / "assets" / "noto_v1")).sprites}
    assert sprites == {"red apple": "红苹果", "house": "房子", "flag of the Bahamas": "巴哈马的旗帜"}


def test_what_is_there_is_not_fetched_again(registry: Path, capsys) -> None:
    command = ["data", "fetch", "cldr", "--to", str(registry / "assets"), "--json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] == {"cldr": 6}
    asked = (registry / "asked").read_text()
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["fetched"] == {"cldr": None}
    assert (registry / "asked").read_text() == asked


def test_what_another_process_has_fetched_meanwhile_is_kept(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = registry / "assets"
    cldr = FETCHABLE["cldr"]

    def write(folder: Path, archives: Archives, side_px: int) -> int:
        (to / "cldr").mkdir()
        (to / "cldr" / "theirs.json").write_text("{}", encoding="utf-8")
        return cldr.write(folder, archives, side_px)

    monkeypatch.setattr("vl2.datasets.fetchable.FETCHABLE", {"cldr": replace(cldr, write=write)})
    assert list(fetch(("cldr",), to)) == [("cldr", 6)]
    assert [path.name for path in (to / "cldr").iterdir()] == ["theirs.json"]
    assert [path.name for path in to.iterdir()] == ["cldr"]


def test_sprites_are_drawn_once_as_png(registry: Path) -> None:
    pytest.importorskip("resvg_py")
    assert run(["data", "fetch", "noto", "--to", str(registry / "assets"), "--size", "64", "-q"]) == 0
    noto = registry / "assets" / "noto"
    assert {path.suffix for path in (noto / "art").iterdir()} == {".png"}
    assert len(list(generate(find_source("emoji")(art=str(noto)), 4))) == 4


def test_a_wheel_is_unpacked_and_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixel = io.BytesIO()
    from PIL import Image

    Image.new("RGB", (64, 64), "blue").save(pixel, "PNG")
    with zipfile.ZipFile(tmp_path / "easy_vqa-1.0-py3-none-any.whl", "w") as wheel:
        for split in ("train", "test"):
            wheel.writestr(f"easy_vqa/data/{split}/images/0.png", pixel.getvalue())
            wheel.writestr(f"easy_vqa/data/{split}/questions.json", '[["what color is it?", "blue", 0]]')
        wheel.writestr("easy_vqa/data/answers.txt", "blue\n")
        wheel.writestr("easy_vqa/easy_vqa.py", "raise SystemExit('never run')")
        wheel.writestr("easy_vqa-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: easy-vqa\nVersion: 1.0\n")
        wheel.writestr("easy_vqa-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("easy_vqa-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    pytest.importorskip("pip")
    assert run(["data", "fetch", "easy_vqa", "--to", str(tmp_path / "assets"), "-q"]) == 0
    folder = tmp_path / "assets" / "easy_vqa"
    assert not (folder / "easy_vqa.py").exists()
    for split in ("train", "test"):
        assert [type(made) for made in convert("easy_vqa", folder, split=split)] == [Record]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nota", "--to", "x"], "nothing to fetch is called 'nota': did you mean noto?"),
        (["noto"], "say where the folders go: --to FOLDER"),
        (["noto", "--to", "x", "--size", "5"], "the side of images must be 16 to 1024 px, got 5"),
        (["twemoji", "--to", "x"], "npm could not get @iconify-json/twemoji 1.2.5: npm error 404 not found"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, registry: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(registry)
    assert run(["data", "fetch", *arguments]) == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (registry / "x").exists() or list((registry / "x").iterdir()) == []


def test_a_missing_client_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["data", "fetch", "noto", "--to", str(tmp_path / "x")]) == 1
    assert "needs npm, which is not installed" in capsys.readouterr().err
