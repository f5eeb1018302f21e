"""The n-gram guard, which prevents loops: no sequence of n tokens may occur twice.

A request that does not set it gets the setting that the model was released with. DeepSeek-VL2 was released without a
guard. The DeepSeek-OCR family's own programs decode with one, and loop on some pages without it.

Source: released `process/ngram_norepeat.py`, `run_dpsk_ocr_image.py` and `run_dpsk_ocr2_image.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from vl2.infer.constraint import NEVER
from vl2.model_kind import ModelKind
from vl2.process.tokenizer import Tokenizer

# N-gram size and window of the released programs for one image. Tables repeat the tags of cells, so these are allowed.
RELEASED_SIZES: dict[ModelKind, tuple[int, int]] = {
    "DeepSeek-OCR": (30, 90),
    "Unlimited-OCR": (35, 128),
    "DeepSeek-OCR-2": (20, 90),
}
TABLE_CELL = ("<td>", "</td>")


def released_guard(kind: ModelKind, tokenizer: Tokenizer) -> tuple[int, int, tuple[int, ...]]:
    """Return the n-gram size, the window and the allowed ids that a model was released with. Size 0 means no guard."""
    size, window = RELEASED_SIZES.get(kind, (0, 0))
    return size, window, tuple(tokenizer.ids_of(TABLE_CELL) if size else ())


def guarded_ids(prompt_ids: Sequence[int], new_ids: Sequence[int], window: int) -> Sequence[int]:
    """Return the ids in which no n-gram may repeat: the answer, or with a window the last ids of prompt and answer."""
    if not window:
        return new_ids
    missing = window - len(new_ids)
    return [*prompt_ids[-missing:], *new_ids] if missing > 0 else new_ids[-window:]


def ban_repeated_ngrams(logits_V: Tensor, ids: Sequence[int], size: int, allowed: Collection[int] = ()) -> Tensor:
    """Set to -inf the logit of every id that would repeat an n-gram of `ids`, except the allowed ids."""
    if len(ids) < size:
        return logits_V
    prefix = tuple(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1)
    banned = {ids[i + size - 1] for i in starts if tuple(ids[i : i + size - 1]) == prefix} - set(allowed)
    if not banned:
        return logits_V
    return logits_V.index_fill(0, torch.tensor(sorted(banned), device=logits_V.device), NEVER)
