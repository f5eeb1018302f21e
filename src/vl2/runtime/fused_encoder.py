"""The blocks of the vision encoder in one call of the kernels (csrc/encode.h)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor, nn

from vl2.kernels import Library
from vl2.kernels.structures import BF16, INT8, BiasedMatrixC, EncoderBlockC, EncoderC, NormC
from vl2.model.vision import NORM_EPS, Block, VisionEncoder
from vl2.quant.matmul import FEW_PREFILL_ROWS
from vl2.runtime.weight_pointers import Unsupported, WeightPointers

LANES = 16  # outputs that a tile takes


class FusedEncoder:
    """Runs the blocks of an encoder, whose weights' addresses it has written down."""

    def __init__(self, vision: VisionEncoder, kernels: Library) -> None:
        """Raise Unsupported where a block is not one that the kernels know."""
        self._kernels, self._weights = kernels, WeightPointers(vision)
        blocks = [block for block in vision.blocks if isinstance(block, Block)]
        heads = {block.attn.num_heads for block in blocks}
        if len(blocks) != len(vision.blocks) or len(heads) != 1:
            raise Unsupported("its blocks are of another kind")
        self._blocks = (EncoderBlockC * len(blocks))(*map(self._block, blocks))
        self._encoder = EncoderC(len(blocks), vision.pos_embed.shape[-1], heads.pop(), NORM_EPS, self._blocks)

    def run(self, x_IPD: Tensor) -> Tensor | None:
        """Return the patches of some tiles behind the last block, [I, P, D].

        None for rows so few that int8 weights meet 16 bits, and where the kernels do not do the shape.
        """
        (I, P, _), out_IPD = x_IPD.shape, x_IPD.clone(memory_format=torch.contiguous_format)
        if I * P <= FEW_PREFILL_ROWS:
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
            raise Unsupported("its norms are of another kind")
        return NormC(self._weights.address(norm.weight), self._weights.address(norm.bias))

    def _matrix(self, layer: nn.Linear) -> BiasedMatrixC:
        weight, bias = self._weights.matrix(layer), layer.bias
        if weight.kind not in (BF16, INT8) or weight.outputs % LANES:
            raise Unsupported("its weights are not of a form that tiles take")
        return BiasedMatrixC(weight, None if bias is None else self._weights.address(bias))
