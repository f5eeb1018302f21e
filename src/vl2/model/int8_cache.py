"""The key-value cache in int8: codes with a float32 scale for each position and head, about half the bytes of bfloat16.

A number is code * scale, with codes from -127 to 127, so the error of each number is at most half its scale. A layer
holds its codes first and their scales behind them, with positions on the second to last axis like everything cached:

    multi-head attention: codes of keys and of values [B, H, L, C], their scales [B, H, L, 1]
    latent attention:     codes [B, L, R + rope], scales [B, L, 2], one of the latent and one of the rotary key

Whatever moves, drops or copies positions therefore works on it unchanged. The positions of a pass over a prompt attend
to one another as they were computed, and to what the cache held before as codes. A single new position is quantized
before it is attended to, so later steps find exactly what it has seen. The CPU kernels multiply by the codes
themselves (csrc/cached_rows.h); here a layer is dequantized for each pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vl2.config import LanguageConfig
from vl2.errors import UserError
from vl2.model.cache import Cache, Tensors

CacheForm = Literal["auto", "int8"]  # "auto" is the model's own type
CACHE_FORMS: tuple[CacheForm, ...] = get_args(CacheForm)
AS_MODEL: CacheForm = "auto"
LARGEST_CODE = 127


def check_cache(form: str, device: torch.device) -> CacheForm:
    """Return the form. Raise UserError if there is no such form, or if the device does not support it."""
    found = next((known for known in CACHE_FORMS if known == form), None)
    if found is None:
        raise UserError(f"cache must be {' or '.join(CACHE_FORMS)}, got {form}")
    if found != AS_MODEL and device.type != "cpu":
        raise UserError(f"a cache in {found} is for the CPU only, and the model is to run on {device}")
    return found


def allocate_cache(
    form: CacheForm,
    config: LanguageConfig,
    num_rows: int,
    capacity: int,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Cache:
    """Allocate empty rows in a form. `dtype` is the model's type, which the codes of int8 do not depend on."""
    if form == AS_MODEL:
        return Cache.allocate(config, num_rows, capacity, dtype=dtype, device=device)
    return Int8Cache.empty(config, num_rows, capacity, device=device)


class Int8Cache(Cache):
    """A cache whose layers are codes and scales. `place` and `filled` return these too, `write` dequantized values."""

    def __init__(self, layers: list[Tensors], lengths: list[int], widths: tuple[int, ...]) -> None:
        """`widths` are the numbers of channels that share a scale, in order."""
        super().__init__(layers, lengths)
        self.widths = widths

    @classmethod
    def empty(cls, config: LanguageConfig, num_rows: int, capacity: int, *, device: torch.device) -> Int8Cache:
        """Allocate `num_rows` empty rows of `capacity` positions for every layer."""
        codes = Cache.allocate(config, num_rows, capacity, dtype=torch.int8, device=device).layers
        widths: tuple[int, ...] = (codes[0][0].shape[-1],)
        if config.use_mla:
            assert config.kv_lora_rank is not None
            widths = (config.kv_lora_rank, config.qk_rope_head_dim)
        shape = (*codes[0][0].shape[:-1], len(widths))
        return cls([(*layer, *(torch.zeros(shape, device=device) for _ in layer)) for layer in codes],
                   [0] * num_rows, widths)  # fmt: skip

    def rows(self, start: int, stop: int) -> Int8Cache:
        layers = [tuple(t[start:stop] for t in layer) for layer in self.layers]
        return Int8Cache(layers, self.lengths[start:stop], self.widths)

    def write(self, layer: int, new: Tensors) -> Tensors:
        """Append new positions to every row of a layer, and return what it then holds in the type of `new`.

        Several new positions are returned as they were given, a single one with the error of its codes.
        """
        quantized = [quantize_rows(t, self.widths) for t in new]
        held = super().write(layer, (*(codes for codes, _ in quantized), *(scales for _, scales in quantized)))
        pairs = zip(held[: len(new)], held[len(new) :], strict=True)
        plain = tuple(dequantize_rows(codes, scales, self.widths).to(new[0].dtype) for codes, scales in pairs)
        num_new = new[0].shape[-2]
        if num_new > 1:
            for whole, fresh in zip(plain, new, strict=True):
                for row, length in enumerate(self.lengths):
                    whole[row].narrow(-2, length, num_new).copy_(fresh[row])
        return plain


def quantize_rows(x: Tensor, widths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return int8 codes [..., C] and float32 scales [..., len(widths)] of rows [..., C] with C = sum(widths).

    Each row has a scale for each of the widths, by which its largest number becomes the code 127 or -127.
    """
    codes, scales = [], []
    for part in x.float().split(tuple(widths), dim=-1):
        largest = part.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30)  # zeros would be divided by zero
        codes.append((part * (LARGEST_CODE / largest)).round().to(torch.int8))
        scales.append(largest / LARGEST_CODE)
    return torch.cat(codes, dim=-1), torch.cat(scales, dim=-1)


def dequantize_rows(codes: Tensor, scales: Tensor, widths: Sequence[int]) -> Tensor:
    """Return float32 rows [..., C] from what `quantize_rows` returned."""
    parts = codes.split(tuple(widths), dim=-1)
    return torch.cat([part * scales[..., i : i + 1] for i, part in enumerate(parts)], dim=-1)
