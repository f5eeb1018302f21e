"""What the primer writes: a font that can draw a text, at a size at which the text fits."""

from __future__ import annotations

import random

from vl2.synth import fonts, words
from vl2.synth.source import Dropped

ATTEMPTS = 40  # faces tried for a text
LEAST_PX = 13  # smaller text is not drawn: at this size a letter is half a patch wide


def choose_language(rng: random.Random, languages: tuple[str, ...], folders: tuple[str, ...] | None) -> str:
    """Return one of the wanted languages that the fonts can draw."""
    possible = [language for language in languages if language in fonts.languages(folders)]
    if not possible:
        raise Dropped("no font for the language")
    return rng.choice(possible)


def choose_face(rng: random.Random, text: str, folders: tuple[str, ...] | None) -> fonts.Face:
    """Return a face that covers a text. Faces are tried at random: to ask all would take longer than to draw."""
    faces = fonts.find_faces(folders)
    for _ in range(ATTEMPTS):
        face = rng.choice(faces)
        if fonts.covers(face, text):
            return face
    covering = fonts.faces_for(text, folders)
    if not covering:
        raise Dropped("no font covers the text")
    return rng.choice(covering)


def fit(face: fonts.Face, text: str, size_px: int, width_px: float) -> fonts.Font:
    """Return the font at the wanted size, or as much smaller as the text needs to fit a width."""
    length = fonts.load(face, size_px).getlength(text)
    if length > width_px:
        size_px = int(size_px * width_px / length)
    if size_px < LEAST_PX:
        raise Dropped("the text is too long for its place")
    return fonts.load(face, size_px)


def phrase(rng: random.Random, language: str, path: str | None, limit: int) -> str:
    """Return one to a few words of at most `limit` characters from the texts of a file, or from the built-in ones."""
    passages = words.read_passages(path) if path else words.PASSAGES[language]
    passage = rng.choice(passages)
    if language == "zh":
        start = rng.randrange(max(1, len(passage) - 1))
        piece = passage[start : start + rng.randint(1, limit)]
        return piece.strip("，。、；：？！ ") or passage[:limit]
    pieces = passage.split(" ")
    start = rng.randrange(len(pieces))
    length, taken = rng.randint(min(3, limit), limit), pieces[start][:limit]
    for piece in pieces[start + 1 :]:
        if len(taken) + 1 + len(piece) > length:
            break
        taken += f" {piece}"
    return taken


def token(rng: random.Random) -> str:
    """Return something without words, as stands on labels and receipts: a price, a date, a code."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"${rng.randint(0, 199)}.{rng.randint(0, 99):02d}"
    if kind == 1:
        return f"{rng.randint(1, 28):02d}/{rng.randint(1, 12):02d}/{rng.randint(1990, 2030)}"
    if kind == 2:
        return f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    if kind == 3:
        return str(rng.randint(0, 10 ** rng.randint(1, 7)))
    if kind == 4:
        return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ23456789") for _ in range(rng.randint(2, 8)))
    return f"{rng.randint(0, 999)}.{rng.randint(0, 99):02d}{rng.choice(('', '%', ' kg', ' km', ' EUR'))}"
