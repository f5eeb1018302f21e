"""Constrained decoding of boxes: every `<|ref|>` is followed by a label and a well-formed list of boxes.

A list `[[x0, y0, x1, y1], [...]]` has at least one box and one blank after each comma. Its coordinates are whole
numbers in 0..999 without leading zeros, with x0 <= x1 and y0 <= y1. Every state can be completed; `num_chars_left`
bounds the characters that this takes.

The strict parser accepts every such answer, even one that ends because its tokens are used up: a label or a box is
started only if there is room to finish it. This is our own code because the grammar is small, and because the grammars
of libraries cannot express the order of the corners.
"""

from __future__ import annotations

import re
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.process.grounding import DET, END_DET, END_REF, REF, SCALE
from vl2.process.tokenizer import Tokenizer

MAX_DIGITS = len(str(SCALE))
SHORTEST = len("[[999, 999, 999, 999]]")  # a number of characters that is always enough for a list of one box
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
    """The state of a list of boxes. It is a tuple because a large vocabulary creates thousands for each token."""

    phase: Phase = "list"  # what is expected next; for "in box" and "between boxes", the blank after a comma
    numbers: tuple[int, ...] = ()  # finished numbers of the open box
    digits: str = ""  # digits of the open number

    @property
    def is_end(self) -> bool:
        return self.phase == "end"

    @property
    def num_chars_left(self) -> int:
        """Return a number of characters that is always enough to finish the list."""
        rest = (3 - len(self.numbers)) * len(", 999") + len("]]")
        if self.phase == "number":
            return MAX_DIGITS - len(self.digits) + rest
        if self.phase == "in box":
            return 1 + MAX_DIGITS + rest
        return {"list": SHORTEST, "box": SHORTEST - 1, "between boxes": SHORTEST, "after box": 1, "end": 0}[self.phase]

    @property
    def lowest(self) -> int:
        """Return the least value allowed for the next number: x1 >= x0 and y1 >= y0."""
        return self.numbers[len(self.numbers) - 2] if len(self.numbers) >= 2 else 0

    def without_past(self) -> BoxListState:
        """Return a state that accepts the same characters up to the end of the open number.

        Numbers that no longer matter become 0, so that fewer distinct states are cached.
        """
        known = len(self.numbers)
        numbers = [0] * known
        if known >= 2:
            numbers[known - 2] = self.lowest
        return BoxListState(self.phase, tuple(numbers), self.digits)

    def push(self, text: str) -> BoxListState | None:
        """Return the state after these characters, or None if no list continues with them."""
        state: BoxListState | None = self
        for char in text:
            state = None if state is None else state.push_char(char)
        return state

    def push_char(self, char: str) -> BoxListState | None:
        """Return the state after one character, or None if no list continues with it."""
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


TAGS = (REF, END_REF, DET, END_DET)
MAX_LABEL_BYTES = 400
# Numbers of tokens that are always enough, with one token per byte: AFTER_LABEL for <|/ref|> <|det|> list <|/det|>,
# ONE_GROUP for these with <|ref|> and a label of one byte.
AFTER_LABEL = 1 + 1 + SHORTEST + 1
ONE_GROUP = 1 + 1 + AFTER_LABEL


@dataclass(frozen=True, kw_only=True)
class WellFormedBoxes:
    """The constraint that every label in the text is followed by boxes, and that every box has four valid numbers.

    With `only_boxes` the answer has only labels and boxes, and at least one box even if the object is not in the image.
    """

    only_boxes: bool = False

    @property
    def outline(self) -> str:
        box = "[111, 111, 111, 111]"
        return f"{REF} {END_REF}{DET}[{box}, {box}]{END_DET}"

    def start(self, tokenizer: Tokenizer, max_new_tokens: int) -> WellFormedBoxesState:
        if self.only_boxes and max_new_tokens < ONE_GROUP:
            raise UserError(f"max_new_tokens must be at least {ONE_GROUP} for a box, got {max_new_tokens}")
        return WellFormedBoxesState(_vocabulary(tokenizer), only_boxes=self.only_boxes)


class Trie:
    """A prefix tree of token texts: a search skips all texts with a prefix that is not allowed."""

    def __init__(self) -> None:
        self.below: dict[str, Trie] = {}
        self.ids: list[int] = []  # ids of the text that ends at this node

    def add(self, text: str, token_id: int) -> None:
        node = self
        for char in text:
            node = node.below.setdefault(char, Trie())
        node.ids.append(token_id)


class Vocabulary:
    """The ids of a tokenizer, grouped by where they may occur: tags, text, blanks, lists of boxes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.size = tokenizer.num_ids
        self.eos_id = tokenizer.eos_id
        self.tag_ids = {tag: tokenizer.special_ids[tag] for tag in TAGS}
        self.bytes = [tokenizer.token_bytes(i, skip_special=True) for i in range(self.size)]
        # The parser would read text that spells out a tag as the tag itself.
        spelled = tuple(tag.encode() for tag in TAGS)
        self.text_mask = torch.tensor(
            [bool(b) and not (b"|>" in b and any(tag in b for tag in spelled)) for b in self.bytes]
        )
        self.blank_ids = torch.tensor([i for i, b in enumerate(self.bytes) if b and not b.strip()], dtype=torch.int64)
        self.closing = [(i, b) for i, b in enumerate(self.bytes) if b">" in b]
        self.list_texts = Trie()
        self.can_span_numbers = False
        for i, b in enumerate(self.bytes):
            if b and b.isascii() and ALPHABET.issuperset(text := b.decode()):
                self.list_texts.add(text, i)
                self.can_span_numbers |= re.search("[, ].*[0-9]", text) is not None

    def mask(self, ids: list[int] | Tensor) -> Tensor:
        """Return bool [V], True for these ids only."""
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[ids] = True
        return mask

    def continuing(self, state: BoxListState) -> tuple[Tensor, Tensor]:
        """Return the ids that continue a list, int64 [N], and for each the characters that then suffice, int16 [N]."""
        # If no token spans two numbers, earlier numbers other than the lower bound cannot matter: cache fewer states.
        return self._continuing(state if self.can_span_numbers else state.without_past())

    @lru_cache(maxsize=4096)  # noqa: B019 - lives as long as the vocabulary, which is kept anyway
    def _continuing(self, state: BoxListState) -> tuple[Tensor, Tensor]:
        found: list[tuple[int, int]] = []
        level = [(self.list_texts, state)]
        while level:
            node, at = level.pop()
            found += [(i, at.num_chars_left) for i in node.ids]
            level += [(below, then) for char, below in node.below.items() if (then := at.push_char(char)) is not None]
        return torch.tensor([i for i, _ in found]), torch.tensor([rest for _, rest in found], dtype=torch.int16)


def prepare_boxes(tokenizer: Tokenizer) -> None:
    """Build in advance what the first constraint on boxes would build."""
    _vocabulary(tokenizer)


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer)


class WellFormedBoxesState:
    """The state of one answer: in free text, in a label, between label and boxes, or in the boxes."""

    def __init__(self, vocabulary: Vocabulary, *, only_boxes: bool) -> None:
        self._vocabulary = vocabulary
        self._only_boxes = only_boxes
        self._place: Literal["text", "label", "after label", "boxes"] = "text"
        self._text = b""  # the text since the last tag
        self._boxes = BoxListState()
        self._has_group = False

    @property
    def num_to_finish(self) -> int:
        if self._place == "text":
            return ONE_GROUP if self._only_boxes and not self._has_group else 0
        if self._place == "label":
            return AFTER_LABEL if self._text.strip() else 1 + AFTER_LABEL
        return AFTER_LABEL - 1 if self._place == "after label" else self._boxes.num_chars_left + 1

    def allowed(self, num_left: int) -> Tensor:
        tag_ids, mask = self._vocabulary.tag_ids, self._vocabulary.mask
        if self._place == "text":
            return self._allowed_in_text(num_left)
        if self._place == "label":
            return self._allowed_in_label(num_left)
        if self._place == "after label":
            return mask([tag_ids[DET]])
        if self._boxes.is_end:
            return mask([tag_ids[END_DET]])
        # After this id there must be room for the rest of the list and the closing tag.
        ids, rest = self._vocabulary.continuing(self._boxes)
        return mask(ids[rest + 1 <= num_left - 1])

    def advance(self, token_id: int) -> None:
        tag = next((tag for tag, i in self._vocabulary.tag_ids.items() if i == token_id), None)
        if tag is None and self._place == "boxes":
            boxes = self._boxes.push(self._vocabulary.bytes[token_id].decode())
            assert boxes is not None, (token_id, self._boxes)
            self._boxes = boxes
        elif tag is None:
            self._text += self._vocabulary.bytes[token_id]
        else:
            self._place = {REF: "label", END_REF: "after label", DET: "boxes", END_DET: "text"}[tag]  # type: ignore[assignment]
            self._text, self._boxes = b"", BoxListState()
            self._has_group = self._has_group or tag == END_DET

    def copy(self) -> WellFormedBoxesState:
        return copy(self)  # all of its fields are immutable or shared

    def _allowed_in_text(self, num_left: int) -> Tensor:
        vocabulary = self._vocabulary
        mask = vocabulary.mask([]) if self._only_boxes else self._text_mask()
        mask[vocabulary.eos_id] = self._has_group or not self._only_boxes
        mask[vocabulary.tag_ids[REF]] = num_left >= ONE_GROUP
        return mask

    def _allowed_in_label(self, num_left: int) -> Tensor:
        vocabulary = self._vocabulary
        is_named = bool(self._text.strip())
        must_end = len(self._text) >= MAX_LABEL_BYTES or num_left <= AFTER_LABEL
        if is_named and must_end:
            return vocabulary.mask([vocabulary.tag_ids[END_REF]])
        mask = self._text_mask()
        if not is_named:
            mask[vocabulary.blank_ids] = False
        mask[vocabulary.tag_ids[END_REF]] = is_named
        return mask

    def _text_mask(self) -> Tensor:
        """Return the ids of text as bool [V], without those that would complete a spelled-out tag."""
        mask = self._vocabulary.text_mask.clone()
        tail = self._text[1 - max(map(len, TAGS)) :]
        if b"<" in tail:
            spelled = [i for i, b in self._vocabulary.closing if any(tag.encode() in tail + b for tag in TAGS)]
            mask[spelled] = False
        return mask
