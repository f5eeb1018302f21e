"""Convert text to token ids and back, with the special tokens of the released processor.

Which special tokens a text may contain depends on its author. A template may contain all of them, a user's text only
the grounding tags, so that a typed `<image>` or `<|User|>` stays text.

Source: the released processor's set-up of its tokenizer. Golden: `special_token_ids` and `encodings`
in tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from vl2.errors import UserError

Specials = Literal["all", "grounding", "none"]

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
IMAGE = "<image>"
GROUNDING = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
USER = "<|User|>"
ASSISTANT = "<|Assistant|>"

LONG_TEXT = 10_000  # characters; tokenizing them takes some 20 ms


class TextTooLong(UserError):
    """The texts have more tokens than allowed, which was found without tokenizing them."""

    def __init__(self, message: str, max_tokens: int) -> None:
        super().__init__(message)
        self.max_tokens = max_tokens


@dataclass(frozen=True, kw_only=True)
class TokenBounds:
    """Upper bounds on the text in one token of a vocabulary.

    `byte_shares` [256] has for each byte value the smallest part of a token that it can take up. This is 1 / n, where n
    is the length in bytes of the longest token with that byte. The sum of the shares of all bytes of a text is
    therefore at most its number of tokens. A byte that is not a token by itself may be dropped by the tokenizer, so its
    share is 0.
    """

    max_bytes: int
    max_chars: int  # characters that begin in one token
    byte_shares: NDArray[np.float64]


class Tokenizer:
    """A byte-level BPE vocabulary. Ids are those that the released model was trained with."""

    def __init__(self, raw: RawTokenizer, pad_token: str = PAD, *, has_roles: bool = True) -> None:
        """Add the special tokens that `raw` lacks, in place. Their order determines their ids.

        `has_roles` is False for the DeepSeek-OCR family, whose vocabularies have other tokens at the ids of the roles.
        Raise UserError if `raw` has no bos or eos token.
        """
        roles = (USER, ASSISTANT) if has_roles else ()
        self._raw = raw
        for token in (BOS, EOS):
            if raw.token_to_id(token) is None:
                raise UserError(f"the tokenizer has no {token}: is this a DeepSeek-VL2 tokenizer.json?")
        for token in (pad_token, IMAGE, *GROUNDING, *roles):
            raw.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        self.bos_id = self._id(BOS)
        self.eos_id = self._id(EOS)
        self.pad_id = self._id(pad_token)
        self.image_id = self._id(IMAGE)
        self.has_roles = has_roles
        self.special_ids = {token: self._id(token) for token in (BOS, EOS, pad_token, IMAGE, *GROUNDING, *roles)}
        added = raw.get_added_tokens_decoder()
        self._dropped = frozenset((self.bos_id, self.eos_id, self.pad_id, self.image_id))
        self._all_special = frozenset(i for i, token in added.items() if token.special)
        others = [token.content for token in added.values() if token.content not in GROUNDING]
        self._grounding_pattern = re.compile("|".join(map(re.escape, GROUNDING)))
        self._other_pattern = re.compile("|".join(map(re.escape, others)))
        self._bytes: dict[int, bytes] = {}
        self._character_ids: dict[str, list[int]] = {}

    @classmethod
    def from_file(cls, path: Path | str, pad_token: str = PAD, *, has_roles: bool = True) -> Tokenizer:
        """Read a tokenizer.json. Raise UserError if it is missing or not valid."""
        return cls(read_raw(Path(path)), pad_token, has_roles=has_roles)

    def __len__(self) -> int:
        return self._raw.get_vocab_size(with_added_tokens=True)

    def __contains__(self, token_id: int) -> bool:
        return 0 <= token_id < 1 << 32 and self._raw.id_to_token(token_id) is not None

    @property
    def user_id(self) -> int:
        return self._id(USER)

    @property
    def assistant_id(self) -> int:
        return self._id(ASSISTANT)

    @property
    def opening_id(self) -> int | None:
        """The token that opens an answer, or None if the vocabulary has no roles."""
        return self.assistant_id if self.has_roles else None

    def ids_of(self, tokens: Iterable[str]) -> list[int]:
        """Return the ids of the tokens. Tokens that are not in the vocabulary are skipped."""
        found = (self._raw.token_to_id(token) for token in tokens)
        return [token_id for token_id in found if token_id is not None]

    @property
    def num_ids(self) -> int:
        """One more than the largest id. There may be gaps between ids."""
        return max(self._raw.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def to_json(self) -> str:
        """Return the contents of a tokenizer.json that includes the added special tokens."""
        text: str = self._raw.to_str()
        return text

    def encode(self, text: str, specials: Specials = "grounding", *, by_character: bool = False) -> list[int]:
        """Return the ids of a text. Bos and eos are not added.

        With `specials` "all" the text of any special token becomes that token, as in the released processor. With
        "grounding" this holds only for the ref, det and grounding tags. With "none" everything is ordinary text.

        `by_character` encodes each character separately, like BPE-dropout with probability 1 (arXiv 1910.13267) except
        that the bytes of one character may still be merged. The result is longer and decodes to the same text.
        """
        # A lone surrogate (half of a split emoji) cannot be encoded in UTF-8, so replace it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        if specials == "all":
            assert not by_character, "a template with every special token is never encoded by character"
            return self._encode_raw(self._raw, text)
        encode = self._encode_characters if by_character else self._encode_plain
        if specials == "none":
            return encode(text)
        ids: list[int] = []
        start = 0
        for tag in self._grounding_pattern.finditer(text):
            ids += encode(text[start : tag.start()])
            ids.append(self.special_ids[tag.group()])
            start = tag.end()
        return ids + encode(text[start:])

    def decode(self, ids: Iterable[int], skip_special: bool | None = None) -> str:
        """Return the text of the ids. Ids outside the vocabulary are skipped.

        By default bos, eos, pad and image tokens are dropped and grounding tags are kept. With `skip_special=True`
        every special token is dropped, with False none.
        """
        decoder = self.stream(skip_special)
        return "".join(decoder.push(token) for token in ids) + decoder.flush()

    def stream(self, skip_special: bool | None = None) -> TextStream:
        """Return a decoder that takes one id at a time. `skip_special` is as in `decode`."""
        return TextStream(self, skip_special)

    def token_bytes(self, token: int, skip_special: bool | None = None) -> bytes:
        """Return the bytes of one id, or b"" if it is dropped (as in `decode`) or unknown."""
        dropped = {None: self._dropped, True: self._all_special, False: frozenset[int]()}[skip_special]
        if token in dropped or not 0 <= token < 1 << 32:
            return b""
        known = self._bytes.get(token)
        if known is None:
            text = self._raw.id_to_token(token)
            known = self._bytes[token] = b"" if text is None else _bytes_of(text)
        return known

    def _id(self, token: str) -> int:
        found: int | None = self._raw.token_to_id(token)
        assert found is not None, token
        return found

    def _encode_plain(self, text: str) -> list[int]:
        if not text:
            return []
        # In a text without special tokens both vocabularies agree, so the plain one need not be built.
        has_special = self._other_pattern.search(text) or self._grounding_pattern.search(text)
        return self._encode_raw(self._plain if has_special else self._raw, text)

    def _encode_characters(self, text: str) -> list[int]:
        return [id for char in text for id in self._ids_of_character(char)]

    def _ids_of_character(self, char: str) -> list[int]:
        known = self._character_ids.get(char)
        if known is None:
            known = self._character_ids[char] = self._encode_plain(char)
        return known

    def check_length(self, texts: Iterable[str], max_tokens: int) -> None:
        """Raise TextTooLong if the texts together certainly have more than `max_tokens` tokens. Nothing is tokenized.

        Texts that pass may still be too long, but texts that fit always pass. The number of characters of the longest
        token gives a first lower bound on the number of tokens, and `byte_shares` a closer one.
        """
        texts = list(texts)
        num_chars = sum(map(len, texts))
        if num_chars <= max_tokens:
            return
        max_chars = max_tokens * self.token_bounds.max_chars
        least = 0
        if num_chars <= max_chars:
            least = self._least_tokens(texts)
            if least <= max_tokens:
                return
        size = f"{num_chars} characters" + (f", which are at least {least} tokens" if least else "")
        raise TextTooLong(
            f"the text has {size}: the context of {max_tokens} tokens holds at most {max_chars} characters of any text",
            max_tokens,
        )

    def _least_tokens(self, texts: Iterable[str]) -> int:
        """Return a lower bound on the number of tokens of the texts. It holds for any way to split and join them."""
        counts = np.zeros(256, dtype=np.int64)
        for text in texts:
            counts += np.bincount(np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8), minlength=256)
        return math.ceil(float(counts @ self.token_bounds.byte_shares) - 1e-3)

    @cached_property
    def token_bounds(self) -> TokenBounds:
        """The bounds of this vocabulary. They are computed once, in half a second for a large vocabulary."""
        tokens = [token for id in range(self.num_ids) if (token := self.token_bytes(id, skip_special=False))]
        lengths = np.array([len(token) for token in tokens])
        values = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        starts = np.cumsum(lengths) - lengths
        num_chars = np.add.reduceat(values & 0xC0 != 0x80, starts, dtype=np.int64)
        longest = np.zeros(256)
        np.maximum.at(longest, values, np.repeat(lengths, lengths))
        is_token = np.zeros(256, dtype=bool)
        is_token[values[starts[lengths == 1]]] = True
        return TokenBounds(
            max_bytes=int(lengths.max()),
            max_chars=int(num_chars.max()),
            byte_shares=np.divide(1.0, longest, out=np.zeros(256), where=is_token),
        )

    @staticmethod
    def _encode_raw(raw: RawTokenizer, text: str) -> list[int]:
        encoding: Any
        if len(text) < LONG_TEXT:
            encoding = raw.encode(text, add_special_tokens=False)
        else:
            # The batch call releases the GIL and computes no offsets. For short texts its threads cost more than that.
            (encoding,) = raw.encode_batch_fast([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    @cached_property
    def _plain(self) -> RawTokenizer:
        """The same vocabulary without special tokens."""
        state = json.loads(self._raw.to_str())
        state["added_tokens"] = []
        return RawTokenizer.from_str(json.dumps(state))


def read_raw(path: Path) -> RawTokenizer:
    """Read a tokenizer.json without adding tokens. Raise UserError if it is missing or not valid."""
    if not path.is_file():
        raise UserError(f"no tokenizer file at {path}")
    try:
        return RawTokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path} is not a tokenizer file: {' '.join(str(error).split())[:120]}") from None


class TextStream:
    """Decode ids to text one by one. The joined pieces are exactly `Tokenizer.decode` of all ids.

    A character whose bytes are spread over several tokens is returned with the last of them.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool | None = None) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the text that this id completes, which can be more or less than that of one token."""
        return self._utf8.decode(self._tokenizer.token_bytes(token, self._skip_special))

    def flush(self) -> str:
        """Return U+FFFD if the last character is incomplete, otherwise an empty string."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """Return the map from the printable characters of byte-level BPE (GPT-2's table) to the bytes they stand for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF = _byte_alphabet()


def _bytes_of(token: str) -> bytes:
    """Return the bytes of a token in the byte alphabet. A token with other characters was added and is plain text."""
    try:
        return bytes(_BYTE_OF[c] for c in token)
    except KeyError:
        return token.encode("utf-8")
