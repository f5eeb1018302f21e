"""The grammar of a list of boxes as the model was trained to write it, one character at a time.

`[[x0, y0, x1, y1], [...]]`: at least one box, whole numbers in 0..999 without leading zeros, x0 <= x1 and y0 <= y1,
one blank after each comma. Every state can be finished; `num_chars_left` says within how many characters.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vl2.process.grounding import SCALE

MAX_DIGITS = len(str(SCALE))
SHORTEST = len("[[999, 999, 999, 999]]")  # characters that are always enough for one box
ALPHABET = frozenset("[]0123456789, ")

Phase = Literal["list", "box", "number", "in box", "between boxes", "after box", "end"]
FOLLOWING: dict[tuple[Phase, str], Phase] = {
    ("list", "["): "box",
    ("box", "["): "number",
    ("in box", " "): "number",
    ("after box", ","): "between boxes",
    ("after box", "]"): "end",
    ("between boxes", " "): "box",
}


class BoxListState(NamedTuple):
    """What of a list has been written. A tuple: thousands are made for each token of a large vocabulary."""

    phase: Phase = "list"  # what is expected next; "in box" and "between boxes": the blank after a comma
    numbers: tuple[int, ...] = ()  # finished numbers of the open box
    digits: str = ""  # of the open number

    @property
    def is_end(self) -> bool:
        return self.phase == "end"

    @property
    def num_chars_left(self) -> int:
        """Return how many characters are always enough to finish from here."""
        rest = (3 - len(self.numbers)) * len(", 999") + len("]]")
        if self.phase == "number":
            return MAX_DIGITS - len(self.digits) + rest
        if self.phase == "in box":
            return 1 + MAX_DIGITS + rest
        return {"list": SHORTEST, "box": SHORTEST - 1, "between boxes": SHORTEST, "after box": 1, "end": 0}[self.phase]

    @property
    def lowest(self) -> int:
        """Return the least value of the next number: x1 is not below x0, nor y1 below y0."""
        return self.numbers[len(self.numbers) - 2] if len(self.numbers) >= 2 else 0

    def without_past(self) -> BoxListState:
        """Return a state that takes the same characters up to the end of the open number."""
        known = len(self.numbers)
        numbers = [0] * known
        if known >= 2:
            numbers[known - 2] = self.lowest
        return BoxListState(self.phase, tuple(numbers), self.digits)

    def push(self, text: str) -> BoxListState | None:
        """Return the state after these characters, or None where no list continues so."""
        state: BoxListState | None = self
        for char in text:
            state = None if state is None else state.push_char(char)
        return state

    def push_char(self, char: str) -> BoxListState | None:
        """Return the state after one character, or None."""
        if self.phase == "number":
            return self._push_in_number(char)
        following = FOLLOWING.get((self.phase, char))
        return None if following is None else BoxListState(following, self.numbers)

    def _push_in_number(self, char: str) -> BoxListState | None:
        lowest = self.lowest
        if char.isascii() and char.isdigit():
            digits = self.digits + char
            highest = 0 if digits[0] == "0" else int(digits.ljust(MAX_DIGITS, "9"))
            fits = len(digits) <= MAX_DIGITS and not (len(digits) > 1 and digits[0] == "0")
            return BoxListState("number", self.numbers, digits) if fits and highest >= lowest else None
        is_last = len(self.numbers) == 3
        if char != ("]" if is_last else ",") or not self.digits or int(self.digits) < lowest:
            return None
        if is_last:
            return BoxListState("after box")
        return BoxListState("in box", (*self.numbers, int(self.digits)))
