"""A pass of the vision encoder in one call of the kernels (csrc/encode.h): where its weights lie, written down once."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from vl2.infer.weight_pointers import Plans, Unsupported, WeightPointers
from vl2.kernels import Library
from vl2.kernels.prefill import has_tiles
from vl2.kernels.structures import BF16, INT8, BiasedMatrixC, EncoderBlockC, EncoderC, NormC
from vl2.model.vision import NORM_EPS, Block, VisionEncoder
from vl2.quant.matmul import FEW_PREFILL_ROWS

LANES = 16  # outputs that a tile takes


class EncoderPlan:
    """The addresses of all weights of an encoder's blocks."""

    def __init__(self, vision: VisionEncoder, kernels: Library) -> None:
        """Raise Unsupported where a block is not one that the kernels know."""
        self._kernels, self._weights = kernels, WeightPointers(vision)
        blocks = [block for block in vision.blocks if isinstance(block, Block)]
        heads = {block.attn.num_heads for block in blocks}
        if len(blocks) != len(vision.blocks) or len(heads) != 1:
            raise Unsupported("blocks of another kind")
        self._blocks = (EncoderBlockC * len(blocks))(*map(self._block, blocks))
        self._encoder = EncoderC(len(blocks), vision.pos_embed.shape[-1], heads.pop(), NORM_EPS, self._blocks)

    def is_current(self) -> bool:
        return self._weights.are_current()

    def run(self, x_IPD: Tensor) -> Tensor | None:
        """Return the patches of some tiles behind the last block, [I, P, D].

        None for rows so few that int8 weights meet 16 bits, and where somebody follows the modules.
        """
        (I, P, _), out_IPD = x_IPD.shape, x_IPD.clone(memory_format=torch.contiguous_format)
        if I * P <= FEW_PREFILL_ROWS or self._weights.are_followed():
            return None
        encoder = ctypes.byref(self._encoder)
        return out_IPD if self._kernels.encode(encoder, out_IPD.data_ptr(), I, P, torch.get_num_threads()) else None

    def _block(self, block: Block) -> EncoderBlockC:
        attention, mlp = block.attn, block.mlp
        matrices = (self._matrix(layer) for layer in (attention.qkv, attention.proj, mlp.fc1, mlp.fc2))
        qkv, projection, fc1, fc2 = matrices
        return EncoderBlockC(self._norm(block.norm1), qkv, projection, self._norm(block.norm2), fc1, fc2)

    def _norm(self, norm: nn.LayerNorm) -> NormC:
        if norm.eps != NORM_EPS:
            raise Unsupported("norms of another kind")
        return NormC(*(self._weights.address(norm, name, getattr(norm, name)) for name in ("weight", "bias")))

    def _matrix(self, layer: nn.Linear) -> BiasedMatrixC:
        weight, bias = self._weights.matrix(layer), layer.bias
        if weight.kind not in (BF16, INT8) or weight.outputs % LANES:
            raise Unsupported("weights that tiles do not take")
        return BiasedMatrixC(weight, None if bias is None else self._weights.address(layer, "bias", bias))


_PLANS = Plans(EncoderPlan)


def encoder_plan(vision: VisionEncoder) -> EncoderPlan | None:
    """Return the plan of an encoder, or None where its blocks must do; the caller knows that it is in inference."""
    return _PLANS.of(vision) if has_tiles() else None
