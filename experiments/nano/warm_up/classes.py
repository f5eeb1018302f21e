"""What a patch can show: nothing, a character, a sprite, or a shape in a color; each is one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vl2.errors import UserError
from vl2.synth.shapes import COLORS, SHAPES

ASCII = tuple(chr(code) for code in range(33, 127))
NOTHING = 0


@dataclass(frozen=True)
class Classes:
    """The numbering: 0 is nothing, then the characters, the sprites by their English names, and the shapes."""

    characters: tuple[str, ...]
    sprites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for what, names in (("characters", self.characters), ("sprites", self.sprites)):
            if len(set(names)) != len(names):
                raise UserError(f"the {what} of the warm-up must differ from one another")

    def __len__(self) -> int:
        return 1 + len(self.characters) + len(self.sprites) + len(SHAPES) * len(COLORS)

    @cached_property
    def _character(self) -> dict[str, int]:
        return {name: 1 + number for number, name in enumerate(self.characters)}

    @cached_property
    def _sprite(self) -> dict[str, int]:
        return {name: 1 + len(self.characters) + number for number, name in enumerate(self.sprites)}

    @cached_property
    def _shape(self) -> dict[tuple[str, str], int]:
        first = 1 + len(self.characters) + len(self.sprites)
        pairs = [(shape.en, color) for shape in SHAPES for color in COLORS]
        return {pair: first + number for number, pair in enumerate(pairs)}

    @property
    def space(self) -> int:
        """The number behind all others: a space is no thing that a patch shows, but it is read."""
        return len(self)

    def character(self, char: str) -> int | None:
        return self._character.get(char)

    def sprite(self, name: str) -> int:
        return self._sprite[name]

    def shape(self, name: str, color: str) -> int:
        return self._shape[name, color]

    @property
    def groups(self) -> dict[str, range]:
        """Return the numbers of each sort, for what is reported."""
        borders = [1, 1 + len(ASCII), 1 + len(self.characters), 1 + len(self.characters) + len(self.sprites), len(self)]
        names = ("latin", "chinese", "sprite", "shape")
        return {name: range(borders[n], borders[n + 1]) for n, name in enumerate(names)}


def choose_characters(texts: Sequence[str], count: int) -> tuple[str, ...]:
    """Return ASCII and the `count` Chinese characters that are the most frequent in some texts."""
    seen: dict[str, int] = {}
    for text in texts:
        for char in text:
            if "一" <= char <= "鿿" or char in "，。！？：；、（）《》“”":
                seen[char] = seen.get(char, 0) + 1
    ranked = sorted(seen, key=lambda char: (-seen[char], char))
    return (*ASCII, *ranked[:count])
