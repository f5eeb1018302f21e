"""The runner with CPU kernels, for bfloat16 models with plain or quantized weights.

A decoding step, a chunk of a prompt and an encoder pass each take one fused call where the kernels support the model.
Otherwise they run module by module, with PyTorch for modules without a kernel. The runner therefore supports any such
model; its `notes` say which fused calls it does not make, and why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vl2.kernels import Library, describe_kernels, load_kernels
from vl2.kernels.matmul import has_bfloat16_products
from vl2.kernels.prefill_ops import has_row_products
from vl2.model import VL2, Cache
from vl2.model.deep_encoder import DeepEncoder
from vl2.model.int8_cache import AS_MODEL, CacheForm
from vl2.model.vision import VisionEncoder
from vl2.runtime.cpu_encoders import CpuClipEncoder, CpuSamEncoder, CpuVisionEncoder
from vl2.runtime.cpu_modules import with_kernels
from vl2.runtime.fused_encoders import FusedEncoder, FusedSam, fused_clip
from vl2.runtime.fused_passes import FusedLanguage, Unsupported
from vl2.runtime.plain import PlainRunner
from vl2.runtime.runner import CachePool, FreshRows, new_key

Fused = TypeVar("Fused", FusedEncoder, FusedSam)


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
        vision = self.model.vision
        if isinstance(vision, CpuVisionEncoder):
            blocks = list(vision.blocks)
            vision.fused = self._fused("tiles are encoded", lambda kernels: FusedEncoder(vision, blocks, kernels))
            return
        assert not isinstance(vision, VisionEncoder), type(vision)
        first = vision.sam
        assert isinstance(first, CpuSamEncoder), type(first)
        first.fused = self._fused("SAM runs", lambda kernels: FusedSam(first, kernels))
        if isinstance(vision, DeepEncoder):
            second = vision.clip
            assert isinstance(second, CpuClipEncoder), type(second)
            second.fused = self._fused("CLIP runs", lambda kernels: fused_clip(second, kernels))

    def _fused(self, what: str, fuse: Callable[[Library], Fused]) -> Fused | None:
        """Return a fused call, or None with a note if this model or this processor does not have it."""
        try:
            kernels = load_kernels()
            if kernels is None or not has_row_products():
                raise Unsupported("this processor has no instructions that multiply blocks of rows")
            return fuse(kernels)
        except Unsupported as error:
            self._notes.append(f"{what} module by module: {error}")
            return None
