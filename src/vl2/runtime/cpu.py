"""The runner with CPU kernels, for bfloat16 models with plain or quantized weights.

A decoding step, a chunk of a prompt and an encoder pass each take one fused call where the kernels support the model.
Otherwise they run module by module, with PyTorch for modules without a kernel. The runner therefore supports any such
model; its `notes` say which fused calls it does not make, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from vl2.kernels import describe_kernels, load_kernels
from vl2.kernels.matmul import has_bfloat16_products
from vl2.kernels.prefill_ops import has_tiles
from vl2.model import VL2, Cache
from vl2.model.deep_encoder import DeepEncoder, DeepEncoder2
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.runtime.cpu_modules import CpuVisionEncoder, with_kernels
from vl2.runtime.fused_passes import FusedEncoder, FusedLanguage, Unsupported
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import CachePool, FreshRows, new_key


class CpuRunner:
    """Run the passes by the CPU kernels. See `Runner` for the methods."""

    name: ClassVar[str] = "CPU kernels"

    def __init__(self, model: VL2, cache: CacheForm = AS_MODEL) -> None:
        self.key = new_key()
        self.model, self.cache = with_kernels(model), cache
        self._plain = PlainRunner(self.model)
        self._notes: list[str] = []
        self._language = self._fuse_language()
        self._fuse_encoder()

    @staticmethod
    def refusal_on(device: torch.device, dtype: torch.dtype) -> str | None:
        if device.type != "cpu":
            return f"the model is on {device}"
        if dtype != torch.bfloat16:
            return f"the model is in {str(dtype).removeprefix('torch.')}, and the kernels are for bfloat16"
        if load_kernels() is None and has_bfloat16_products():
            return f"there are no kernels: {describe_kernels()}"
        return None

    @classmethod
    def refusal(cls, model: VL2) -> str | None:
        if type(model) is not VL2:
            return f"the model is a {type(model).__name__}"
        return cls.refusal_on(model.device, model.dtype)

    @property
    def can_verify(self) -> bool:
        return self._language is not None

    @property
    def notes(self) -> Sequence[str]:
        return self._notes

    def encode(self, tiles_I3PP: Tensor) -> Tensor:
        return self.model.encode_tiles(tiles_I3PP)

    def prefill(self, embeds_1SD: Tensor, row: Cache) -> Tensor:
        state_D = None if self._language is None else self._language.prefill(embeds_1SD, row)
        return self._plain.prefill(embeds_1SD, row) if state_D is None else state_D

    def logits(self, states: Tensor) -> Tensor:
        return self.model.language.logits(states)

    def decode(self, token_ids: Sequence[int], rows: Sequence[Cache], num_rows: int) -> Tensor:
        if self._language is None:
            return self._plain.decode(token_ids, rows, num_rows)
        # No padding to `num_rows`: the kernels compute every row the same way, whatever the number of rows.
        return self._language.decode(token_ids, rows)

    def cache_pool(self, num_rows: int, longest: int, total: int) -> CachePool:
        return FreshRows(self.model, num_rows, self.cache)

    def _fuse_language(self) -> FusedLanguage | None:
        kernels = load_kernels()
        if kernels is None:
            self._notes.append(f"decoding goes module by module, without kernels: {describe_kernels()}")
            return None
        try:
            language = FusedLanguage(self.model.language, kernels)
        except Unsupported as error:
            self._notes.append(f"decoding goes module by module: {error}")
            return None
        if (reason := language.prefill_refusal) is not None:
            self._notes.append(f"prompts are read module by module: {reason}")
        return language

    def _fuse_encoder(self) -> None:
        kernels, vision = load_kernels(), self.model.vision
        if isinstance(vision, DeepEncoder | DeepEncoder2):
            self._notes.append("images are encoded in PyTorch: DeepEncoder has no kernels")
            return
        assert isinstance(vision, CpuVisionEncoder), type(vision)
        try:
            if kernels is None or not has_tiles():
                raise Unsupported("this processor has no tile registers")
            vision.fused = FusedEncoder(vision, kernels)
        except Unsupported as error:
            self._notes.append(f"tiles are encoded module by module: {error}")
