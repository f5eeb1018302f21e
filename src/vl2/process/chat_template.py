"""Convert turns to token ids, labels and the places of the visual tokens, with the released chat template.

The template starts with bos and the system text, which has no role. Each exchange follows as
`<|User|>: TEXT\\n\\n<|Assistant|>:`, the answer directly after the colon, and eos. There is no space between exchanges.

A document is written without a template: bos, its texts and images unchanged, eos. The prompts of DeepSeek-OCR have no
template either. Its vocabulary has no roles, so the turns are written one after another, each answer with its eos.

Golden: tests/golden/reference/processor/conversations_*.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from vl2.process.conversation import Piece, Turn
from vl2.process.sample import IGNORE_ID
from vl2.process.tokenizer import Specials, Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """The tokens of a conversation: ids, labels (IGNORE_ID if not trained), and True in the slots of visual tokens.

    The three lists have the same length. `answers` has the (start, stop) of each answer that ends with eos, in order.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    image_mask: list[bool] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    def add(self, ids: Sequence[int], *, is_trained: bool) -> None:
        self.ids.extend(ids)
        self.labels.extend(ids if is_trained else [IGNORE_ID] * len(ids))
        self.image_mask.extend([False] * len(ids))

    def add_image(self, image_id: int, num_tokens: int) -> None:
        self.ids.extend([image_id] * num_tokens)
        self.labels.extend([IGNORE_ID] * num_tokens)
        self.image_mask.extend([True] * num_tokens)


def tokenize_turns(
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    image_tokens: Sequence[int],
    *,
    train: bool,
    mask_prompt: bool,
    spells_answers: bool = False,
) -> TokenRow:
    """Return the tokens of a conversation. `image_tokens` is the number of visual tokens of each image, in order.

    With `train` every answer ends with eos. Otherwise the assistant's turn at the end stays open: a new one after a
    user turn, or the last assistant turn, which the model then continues. With `mask_prompt` the labels are the
    answers, their eos, and the bos, as in the released processor. All text of a document is labeled, and the document
    ends with eos only with `train`. With `spells_answers` answers are encoded character by character.
    """
    row = TokenRow()
    row.add([tokenizer.bos_id], is_trained=True)
    images = iter(image_tokens)
    for index, turn in enumerate(turns):
        if turn.role == "system":
            row.add(tokenizer.encode(turn.text, turn.specials), is_trained=not mask_prompt)
        elif turn.role == "user":
            _write_user(row, turn, tokenizer, images, is_trained=not mask_prompt)
        elif turn.role == "document":
            _write_pieces(row, turn.pieces, tokenizer, images, turn.specials, is_trained=True)
            row.add([tokenizer.eos_id] if train else [], is_trained=True)
        else:
            start = len(row.ids)
            row.add(tokenizer.encode(turn.text, turn.specials, by_character=spells_answers), is_trained=True)
            if train or index < len(turns) - 1:
                row.add([tokenizer.eos_id], is_trained=True)
                row.answers.append((start, len(row.ids)))
    assert next(images, None) is None, f"more image lengths than images: {len(image_tokens)}"
    return row


def tokenize_prompt(
    pieces: Sequence[Piece], tokenizer: Tokenizer, image_tokens: Sequence[int], *, train: bool
) -> TokenRow:
    """Return the tokens of a raw prompt without the template: bos, the pieces unchanged, and eos with `train`."""
    row = TokenRow()
    row.add([tokenizer.bos_id], is_trained=True)
    _write_pieces(row, pieces, tokenizer, iter(image_tokens), "all", is_trained=True)
    if train:
        row.add([tokenizer.eos_id], is_trained=True)
    return row


def _write_user(row: TokenRow, turn: Turn, tokenizer: Tokenizer, images: Iterator[int], *, is_trained: bool) -> None:
    if not tokenizer.has_roles:
        _write_pieces(row, turn.pieces, tokenizer, images, turn.specials, is_trained=is_trained)
        return
    # Encode the space and the blank line together with the text next to them, because byte pairs merge across these
    # borders. The role tokens are added as ids, so no text can imitate them.
    row.add([tokenizer.user_id], is_trained=is_trained)
    _write_pieces(row, (": ", *turn.pieces, "\n\n"), tokenizer, images, turn.specials, is_trained=is_trained)
    row.add([tokenizer.assistant_id, *tokenizer.encode(":", "none")], is_trained=is_trained)


def _write_pieces(
    row: TokenRow,
    pieces: Sequence[Piece],
    tokenizer: Tokenizer,
    images: Iterator[int],
    specials: Specials,
    *,
    is_trained: bool,
) -> None:
    text = ""
    for piece in pieces:
        if isinstance(piece, str):
            text += piece
            continue
        row.add(tokenizer.encode(text, specials), is_trained=is_trained)
        text = ""
        row.add_image(tokenizer.image_id, next(images))
    row.add(tokenizer.encode(text, specials), is_trained=is_trained)
