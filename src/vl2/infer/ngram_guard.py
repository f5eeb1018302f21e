"""A guard against loops: no passage of n tokens twice.

A request that says nothing of it gets what the model was released with. DeepSeek-VL2 was released without; the
DeepSeek-OCR family's own programs decode with it, and loop on some pages without.

Source: released `process/ngram_norepeat.py` and `run_dpsk_ocr_image.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vl2.infer.constraint import NEVER
from vl2.model_kind import ModelKind
from vl2.process.tokenizer import Tokenizer

# Size and window of the released programs for one image. Tables repeat their cells' tags, so these may.
RELEASED_SIZES: dict[ModelKind, tuple[int, int]] = {"DeepSeek-OCR": (30, 90), "Unlimited-OCR": (35, 128)}
TABLE_CELL = ("<td>", "</td>")


def released_guard(kind: ModelKind, tokenizer: Tokenizer) -> tuple[int, int, tuple[int, ...]]:
    """Return the size, the window and the allowed ids that a model was released with; a size of 0 is none."""
    size, window = RELEASED_SIZES.get(kind, (0, 0))
    return size, window, tuple(tokenizer.ids_of(TABLE_CELL) if size else ())


def guarded_ids(prompt_ids: Sequence[int], new_ids: Sequence[int], window: int) -> Sequence[int]:
    """Return the ids in which an n-gram may not come again: the answer, or the last of prompt and answer together."""
    if not window:
        return new_ids
    missing = window - len(new_ids)
    return [*prompt_ids[-missing:], *new_ids] if missing > 0 else new_ids[-window:]


def ban_repeated_ngrams(logits_V: Tensor, ids: Sequence[int], size: int, allowed: Collection[int] = ()) -> Tensor:
    """Forbid every id that would complete an n-gram which already occurs in `ids`, but for the allowed ones."""
    if len(ids) < size:
        return logits_V
    prefix = tuple(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1)
    banned = {ids[i + size - 1] for i in starts if tuple(ids[i : i + size - 1]) == prefix} - set(allowed)
    if not banned:
        return logits_V
    return logits_V.index_fill(0, torch.tensor(sorted(banned), device=logits_V.device), NEVER)
