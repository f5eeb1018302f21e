"""Split texts into words and n-grams in any script, and select the texts of a record by role."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from vl2.data.record import Record
from vl2.process.conversation import Role

# Chinese and Japanese are written without spaces, so each character counts as a word; Korean is treated alike.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0002fa1f"
_WORD = re.compile(f"[{CJK}]|[^\\W{CJK}]+")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation, with full-width letters normalized (NFKC)."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())


def n_grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    """Return all n-grams in order, repeats included; none if there are fewer than n words."""
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def stable_hash(words: tuple[str, ...]) -> int:
    """Return a 64-bit hash that is the same in every process and on every machine."""
    digest = hashlib.blake2b("\x1f".join(words).encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def texts_of(record: Record, *roles: Role) -> list[str]:
    """Return the text parts of these roles, in order. "assistant" includes "document", since both are trained on."""
    if "assistant" in roles:
        roles = (*roles, "document")
    return [
        part.text
        for message in record.messages
        if message.role in roles
        for part in message.parts
        if part.text is not None
    ]
