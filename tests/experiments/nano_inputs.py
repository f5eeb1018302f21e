"""A small folder of inputs, laid out as experiments.nano.inputs does it; its only font is the one inside Pillow."""

from __future__ import annotations

from pathlib import Path

from experiments.nano.splits import is_test_word
from tests.synth.pill_set import write_set

ENGLISH = (
    "The library opens at nine in the morning and closes at six, and visitors may borrow five books for two weeks.",
    "A small boat crossed the bay before sunrise and by noon it had returned with a net full of silver fish.",
    "Turn left at the old mill and follow the river until you see the tower on the hill behind the village.",
)
NOUNS = (
    "apple", "bridge", "candle", "dragon", "engine", "forest", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orange", "pencil", "quiver", "ribbon", "saddle", "tunnel", "velvet", "window",
)  # fmt: skip
PLACES = (
    "Oslo",
    "Leeds",
    "Perth",
    "Denver",
    "Madrid",
    "Vienna",
    "Dublin",
    "Toronto",
    "Cairo",
    "Lima",
    "Quito",
    "Turin",
)


def write_inputs(folder: Path) -> Path:
    """Write texts, words, an empty folder of fonts and two sprite sets."""
    for part in ("text", "words", "fonts", "art/one", "art/two"):
        (folder / part).mkdir(parents=True)
    texts = {
        "en": ENGLISH,
        "zh": ("天地玄黄宇宙洪荒日月盈昃辰宿列张" * 4,),
        "definitions": ENGLISH,
        "manuals": ("天地玄黄",),
    }
    for name, lines in texts.items():
        (folder / f"text/{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    words = {"nouns_en": NOUNS, "names_en": PLACES, "places_en": PLACES, "nouns_zh": ("天地",), "places_zh": ("天地",),
             "common_zh": ("天地", "日月")}  # fmt: skip
    for name, lines in words.items():
        (folder / f"words/{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name in ("one", "two"):
        write_set(folder / "art" / name)
    return folder


def held_out_words() -> set[str]:
    """Return the words of the lists that no picture may show."""
    return {word for word in (*NOUNS, *PLACES) if is_test_word(word)}
