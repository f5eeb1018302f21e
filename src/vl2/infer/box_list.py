"""The grammar of a list of boxes as the model was trained to write it, one character at a time.

`[[x0, y0, x1, y1], [...]]`: at least one box, whole numbers in 0..999 without leading zeros, x0 <= x1 and y0 <= y1,
one blank after each comma. Every state can be finished; `num_chars_left` says within how many characters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vl2.process.grounding import SCALE

MAX_DIGITS = len(str(SCALE))
SHORTEST = len("[[999, 999, 999, 999]]")  # characters that are always enough for one box
ALPHABET = frozenset("[]0123456789, ")

Phase = Literal["list", "box", "number", "in box", "between boxes", "after box", "end"]


@dataclass(frozen=True, kw_only=True)
class BoxListState:
    """What of a list has been written."""

    phase: Phase = "list"  # what is expected next; "in box" and "between boxes": the blank after a comma
    numbers: tuple[int, ...] = ()  # finished numbers of the open box
    digits: str = ""  # of the open number

    @property
    def is_end(self) -> bool:
        return self.phase == "end"

    @property
    def num_chars_left(self) -> int:
        """Return how many characters are always enough to finish from here."""
        numbers_after = 3 - len(self.numbers)
        rest = numbers_after * len(", 999") + len("]]")
        return {
            "list": SHORTEST,
            "box": SHORTEST - 1,
            "number": MAX_DIGITS - len(self.digits) + rest,
            "in box": 1 + MAX_DIGITS + rest,
            "between boxes": 1 + SHORTEST - 1,
            "after box": 1,
            "end": 0,
        }[self.phase]

    def push(self, text: str) -> BoxListState | None:
        """Return the state after these characters, or None where no list continues so."""
        state: BoxListState | None = self
        for char in text:
            state = state and state._push(char)
        return state

    def _push(self, char: str) -> BoxListState | None:
        if self.phase == "number":
            return self._push_in_number(char)
        following: dict[tuple[Phase, str], BoxListState] = {
            ("list", "["): BoxListState(phase="box"),
            ("box", "["): BoxListState(phase="number"),
            ("in box", " "): replace(self, phase="number"),
            ("after box", ","): BoxListState(phase="between boxes"),
            ("after box", "]"): BoxListState(phase="end"),
            ("between boxes", " "): BoxListState(phase="box"),
        }
        return following.get((self.phase, char))

    def _push_in_number(self, char: str) -> BoxListState | None:
        # The third number is not below the first, nor the fourth below the second.
        lowest = self.numbers[len(self.numbers) - 2] if len(self.numbers) >= 2 else 0
        if char.isascii() and char.isdigit():
            digits = self.digits + char
            highest = 0 if digits[0] == "0" else int(digits.ljust(MAX_DIGITS, "9"))
            fits = len(digits) <= MAX_DIGITS and not (len(digits) > 1 and digits[0] == "0")
            return replace(self, digits=digits) if fits and highest >= lowest else None
        is_last = len(self.numbers) == 3
        if char != ("]" if is_last else ",") or not self.digits or int(self.digits) < lowest:
            return None
        if is_last:
            return BoxListState(phase="after box")
        return BoxListState(phase="in box", numbers=(*self.numbers, int(self.digits)))
