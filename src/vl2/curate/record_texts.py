"""The words of a text in any script, and the texts of a record by who says them."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from vl2.data.record import Record
from vl2.process.conversation import Role

# Chinese, Japanese and Korean are written without blanks, so each character counts as a word.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")


def words_of(text: str) -> list[str]:
    """Return the words, in lower case and without punctuation; full-width letters become plain ones."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def n_grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return every run of n words, in order and with repeats; none if there are fewer than n."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def stable_hash(words: tuple[str, ...]) -> int:
    """Return 64 bits that depend on the words alone: the same in every process, on every machine."""
    digest = hashlib.blake2b("\x1f".join(words).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def texts_of(record: Record, *roles: Role) -> list[str]:
    """Return the text parts that these roles say, in order. A document is what is learned, as the assistant's are."""
    if "assistant" in roles:
        roles = (*roles, "document")
    return [
        part.text
        for message in record.messages
        if message.role in roles
        for part in message.parts
        if part.text is not None
    ]
