"""Convert token ids to text as they arrive: whole characters only, cut at the first stop string.

Boxes before the words of an answer may be left out. An answer that has nothing but boxes is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from vl2.process.grounding import END_DET, REF
from vl2.process.sample import Sample
from vl2.process.tokenizer import Tokenizer


class AnswerStream:
    """Convert the ids of one answer to text. Text that may be the start of a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], *, hides_leading_boxes: bool = False) -> None:
        self._decoder = tokenizer.stream()
        self._leading = _LeadingBoxes(tokenizer) if hides_leading_boxes else None
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""  # the text returned so far
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Add one id and return the text that is now certain, which is often ""."""
        piece = self._decoder.push(token_id)
        if self._leading is not None:
            if self._leading.holds(token_id, piece):
                return ""
            self._leading = None
        return self._give(piece, is_last=False)

    def finish(self) -> str:
        """Return the text that was held back, with an incomplete character replaced."""
        boxes = "" if self._leading is None else self._leading.text
        return self._give(boxes + self._decoder.flush(), is_last=True)

    def _give(self, piece: str, *, is_last: bool) -> str:
        if self.is_stopped:
            return ""
        pending = self._held + piece
        found = [i for i in (pending.find(s) for s in self._stop) if i >= 0]
        if found:
            self.is_stopped = True
            certain, self._held = pending[: min(found)], ""
        else:
            keep = 0 if is_last else max((_overlap(pending, s) for s in self._stop), default=0)
            certain, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        self.text += certain
        return certain


def hidden_boxes(sample: Sample, tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the boxes that are left out of the text of an answer with these ids, with their tags."""
    if not sample.hides_leading_boxes:
        return ""
    decoder, leading = tokenizer.stream(), _LeadingBoxes(tokenizer)
    have_words = any(not leading.holds(token_id, decoder.push(token_id)) for token_id in ids)
    return leading.text if have_words else ""


class _LeadingBoxes:
    """The boxes before the words of an answer, from each `<|ref|>` to the next `<|/det|>`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._opens, self._closes = tokenizer.special_ids[REF], tokenizer.special_ids[END_DET]
        self._is_inside = False
        self.text = ""

    def holds(self, token_id: int, piece: str) -> bool:
        """Tell whether the next token of the answer is still part of them, or white space between them."""
        if token_id == self._opens:
            self._is_inside = True
        if not self._is_inside and piece.strip():
            return False
        if token_id == self._closes:
            self._is_inside = False
        self.text += piece
        return True


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
