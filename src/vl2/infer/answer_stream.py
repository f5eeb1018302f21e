"""Convert token ids to text as they arrive: whole characters only, cut at the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from vl2.process.tokenizer import Tokenizer


class AnswerStream:
    """Convert the ids of one answer to text. Text that may be the start of a stop string is held back."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = tokenizer.stream()
        self._stop = tuple(stop)
        self._held = ""
        self.text = ""  # the text returned so far
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Add one id and return the text that is now certain, which is often ""."""
        return self._give(self._decoder.push(token_id), is_last=False)

    def finish(self) -> str:
        """Return the text that was held back, with an incomplete character replaced."""
        return self._give(self._decoder.flush(), is_last=True)

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


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0)
