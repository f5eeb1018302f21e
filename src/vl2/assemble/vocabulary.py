"""Add DeepSeek-VL2's special tokens to a language model's vocabulary, and initialize their rows in the tables.

The row of a new token is the mean of the trained rows. In the head this bounds the new token's probability: the
exponential of a mean is at most the mean of the exponentials, so next to n trained tokens a new one gets at most 1 / n.
Random rows would have logits around 0, while those of most trained tokens are far below, and so would take probability
from the trained tokens. The alignment stage could not correct that, because it freezes the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vl2.errors import UserError
from vl2.process.tokenizer import Tokenizer, read_raw

MULTIPLE = 128  # a table that grows gets a multiple of this many rows; 102,400 and 129,280 are multiples too
CHUNK_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer with DeepSeek-VL2's special tokens, and the numbers of rows of embedding table and head."""

    tokenizer: Tokenizer
    seen_ids: tuple[int, ...]  # the ids of the language model's own tokenizer
    added: dict[str, int]  # the new special tokens with their ids
    stored_rows: int  # number of rows of the language model's tables
    rows: int  # number of rows of the new checkpoint's tables

    @classmethod
    def of(cls, file: Path, stored_rows: int) -> Vocabulary:
        """Add the special tokens to a tokenizer.json. Raise UserError if its ids exceed the language model's tables."""
        own = read_raw(file)
        seen = sorted(own.get_vocab(with_added_tokens=True).values())
        if not seen or seen[-1] >= stored_rows:
            raise UserError(
                f"{file} gives ids up to {seen[-1] if seen else None}, and the language model has {stored_rows} rows"
            )
        tokenizer = Tokenizer(own)
        known = set(seen)
        needed = tokenizer.num_ids
        return cls(
            tokenizer=tokenizer,
            seen_ids=tuple(seen),
            added={token: id for token, id in tokenizer.special_ids.items() if id not in known},
            stored_rows=stored_rows,
            rows=stored_rows if needed <= stored_rows else -(-needed // MULTIPLE) * MULTIPLE,
        )

    def extend(self, stored_RD: Tensor) -> Tensor:
        """Return the embedding table or head [rows, D] with the rows of the new tokens filled in.

        If the table needs no more rows, it is changed in place and returned.
        """
        out_RD = stored_RD
        if self.rows != self.stored_rows:
            out_RD = stored_RD.new_empty(self.rows, stored_RD.shape[1])
            out_RD[: self.stored_rows] = stored_RD
        new = [*(id for id in self.added.values() if id < self.stored_rows), *range(self.stored_rows, self.rows)]
        if new:
            out_RD[new] = self._mean(stored_RD).to(out_RD.dtype)
        return out_RD

    def _mean(self, stored_RD: Tensor) -> Tensor:
        sum_D = torch.zeros(stored_RD.shape[1], dtype=torch.float64)
        for ids in torch.tensor(self.seen_ids).split(CHUNK_ROWS):
            sum_D += stored_RD[ids].double().sum(dim=0)
        return sum_D / len(self.seen_ids)
