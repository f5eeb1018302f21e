"""Fused calls of the CPU kernels for image encoders: all blocks of SigLIP or of CLIP, or SAM as a whole.

They need a processor with AVX-512 or the matrix extensions of NEON. A view's bits do not depend on the views beside it.
Tests compare the calls with the modules.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.kernels import Library
from vl2.kernels.activation import Activation
from vl2.kernels.structures import (
    BF16,
    INT8,
    BiasedMatrixC,
    EncoderBlockC,
    EncoderC,
    MatrixC,
    NormC,
    SamBlockC,
    SamC,
    SamViewsC,
)
from vl2.model import clip, sam, vision
from vl2.quant.quantized_matmul import FEW_PREFILL_ROWS
from vl2.runtime.fused_passes import Unsupported, WeightPointers

LANES = 16  # outputs of a weight in one tile


@dataclass(frozen=True, kw_only=True)
class BlockParts:
    """The parts of a pre-norm block, whatever names its class has for them."""

    attention_norm: nn.LayerNorm
    qkv: nn.Linear
    projection: nn.Linear
    mlp_norm: nn.LayerNorm
    fc1: nn.Linear
    fc2: nn.Linear
    heads: int


def parts_of(block: nn.Module) -> BlockParts:
    """Return the parts of a block. Raise Unsupported for a module of another kind."""
    if isinstance(block, vision.Block):
        attention, mlp = block.attn, (block.mlp.fc1, block.mlp.fc2)
        norms, projections = (block.norm1, block.norm2), (attention.qkv, attention.proj)
        return _parts(norms, projections, mlp, attention.num_heads)
    if isinstance(block, sam.Block):
        of_sam = block.attn
        return _parts(
            (block.norm1, block.norm2), (of_sam.qkv, of_sam.proj), (block.mlp.lin1, block.mlp.lin2), of_sam.num_heads
        )
    if isinstance(block, clip.Layer):
        of_clip = block.self_attn
        projections = of_clip.qkv_proj, of_clip.out_proj
        norms = block.layer_norm1, block.layer_norm2
        return _parts(norms, projections, (block.mlp.fc1, block.mlp.fc2), of_clip.num_heads)
    raise Unsupported("its blocks are of another kind")


def _parts(
    norms: tuple[nn.LayerNorm, nn.LayerNorm],
    projections: tuple[nn.Linear, nn.Linear],
    mlp: tuple[nn.Linear, nn.Linear],
    heads: int,
) -> BlockParts:
    return BlockParts(
        attention_norm=norms[0],
        qkv=projections[0],
        projection=projections[1],
        mlp_norm=norms[1],
        fc1=mlp[0],
        fc2=mlp[1],
        heads=heads,
    )


class EncoderWeights:
    """The C structures of an encoder's weights, which it keeps in memory."""

    def __init__(self, root: nn.Module, eps: float) -> None:
        """Raise Unsupported if a module under `root` has a hook. `eps` is that of all norms."""
        self._pointers, self._eps = WeightPointers(root), eps

    def block(self, parts: BlockParts) -> EncoderBlockC:
        """Describe a block. Raise Unsupported if the kernels do not support a weight."""
        return EncoderBlockC(
            self.norm(parts.attention_norm),
            self.linear(parts.qkv),
            self.linear(parts.projection),
            self.norm(parts.mlp_norm),
            self.linear(parts.fc1),
            self.linear(parts.fc2),
        )

    def norm(self, norm: nn.LayerNorm | sam.MapNorm) -> NormC:
        if isinstance(norm, nn.LayerNorm) and norm.eps != self._eps:
            raise Unsupported("its norms are of another kind")
        return NormC(self._pointers.address(norm.weight), self._pointers.address(norm.bias))

    def linear(self, layer: nn.Linear) -> BiasedMatrixC:
        return self._biased(self._pointers.matrix(layer), layer.bias)

    def convolution(self, layer: nn.Conv2d) -> BiasedMatrixC:
        """Describe a convolution as a product with unfolded patches, in the order of its weight."""
        if type(layer) is not nn.Conv2d:
            raise Unsupported(f"a layer is a {type(layer).__name__}")
        outputs, inputs = layer.out_channels, layer.weight[0].numel()
        matrix = MatrixC(BF16, outputs, inputs, self._pointers.address(layer.weight), None)
        return self._biased(matrix, layer.bias)

    def _biased(self, weight: MatrixC, bias: Tensor | None) -> BiasedMatrixC:
        if weight.kind not in (BF16, INT8) or weight.outputs % LANES:
            raise Unsupported("its weights are not of a form that tiles take")
        return BiasedMatrixC(weight, None if bias is None else self._pointers.address(bias))


class FusedEncoder:
    """Run all blocks of a vision transformer in one call. The addresses of its weights are recorded at creation."""

    def __init__(
        self,
        root: nn.Module,
        blocks: Sequence[nn.Module],
        kernels: Library,
        *,
        eps: float = vision.NORM_EPS,
        activation: Activation = Activation.GELU_TANH,
    ) -> None:
        """Raise Unsupported if a module under `root` has a hook, or if the kernels do not support a block.

        The defaults are SigLIP's.
        """
        self._kernels, self._weights = kernels, EncoderWeights(root, eps)
        parts = [parts_of(block) for block in blocks]
        if len({each.heads for each in parts}) != 1:
            raise Unsupported("its blocks are of another kind")
        self._blocks = (EncoderBlockC * len(parts))(*map(self._weights.block, parts))
        width, heads = parts[0].projection.out_features, parts[0].heads
        self._encoder = EncoderC(len(parts), width, heads, activation, eps, self._blocks)

    def run(self, x_IPD: Tensor) -> Tensor | None:
        """Return the patches of I tiles after the last block, [I, P, D].

        Return None if the kernels do not support the shape, and for up to FEW_PREFILL_ROWS patches in a tile: so few
        rows are multiplied by int8 weights with 16-bit activations, which the fused call does not do.
        """
        (I, P, _), out_IPD = x_IPD.shape, x_IPD.clone(memory_format=torch.contiguous_format)
        if P <= FEW_PREFILL_ROWS:
            return None
        encoder = ctypes.byref(self._encoder)
        return out_IPD if self._kernels.encode(encoder, out_IPD.data_ptr(), I, P, torch.get_num_threads()) else None


def fused_clip(encoder: clip.ClipEncoder, kernels: Library) -> FusedEncoder:
    """Return the fused call for CLIP's blocks. Raise Unsupported as FusedEncoder does."""
    blocks = list(encoder.transformer.layers)
    return FusedEncoder(encoder.transformer, blocks, kernels, eps=clip.NORM_EPS, activation=Activation.QUICK_GELU)


class FusedSam:
    """Run SAM in one call, from pixels to its map. The addresses of its weights are recorded at creation."""

    def __init__(self, encoder: sam.SamEncoder, kernels: Library) -> None:
        """Raise Unsupported if a module of the encoder has a hook, or if the kernels do not support a weight."""
        self._kernels, self._encoder = kernels, encoder
        weights = EncoderWeights(encoder, sam.NORM_EPS)
        self._weights = weights  # keeps the memory
        blocks = [block for block in encoder.blocks if isinstance(block, sam.Block)]
        if len(blocks) != len(encoder.blocks):
            raise Unsupported("its blocks are of another kind")
        self._sam_blocks = blocks
        parts = [parts_of(block) for block in blocks]
        windows = [block.window_size or 0 for block in blocks]
        described = map(SamBlockC, map(weights.block, parts), windows)
        self._blocks = (SamBlockC * len(blocks))(*described)
        narrow, narrow_norm, neck, neck_norm = encoder.neck
        if not isinstance(narrow, nn.Conv2d) or not isinstance(neck, nn.Conv2d):
            raise Unsupported("its neck is of another kind")
        assert isinstance(narrow_norm, sam.MapNorm), type(narrow_norm)
        assert isinstance(neck_norm, sam.MapNorm), type(neck_norm)
        width = encoder.pos_embed.shape[-1]
        if neck.out_channels > width:
            raise Unsupported("its neck is wider than its blocks")
        self._channels, self._patch_px = encoder.net_3.out_channels, encoder.patch_embed.proj.kernel_size[0]
        self._sam = SamC(
            num_blocks=len(blocks),
            width=width,
            heads=parts[0].heads,
            patch_px=self._patch_px,
            eps=sam.NORM_EPS,
            blocks=self._blocks,
            patch=weights.convolution(encoder.patch_embed.proj),
            narrow=weights.convolution(narrow),
            neck=weights.convolution(neck),
            narrow_norm=weights.norm(narrow_norm),
            neck_norm=weights.norm(neck_norm),
            halve=weights.convolution(encoder.net_2),
            halve_again=weights.convolution(encoder.net_3),
        )

    def run(self, views_I3PP: Tensor) -> Tensor | None:
        """Return the maps of I views, [I, channels, h, w], or None if the kernels do not support the shape.

        The result is contiguous as [I, h, w, channels].
        """
        I, _, height, width = views_I3PP.shape
        side = width // self._patch_px
        if height != width or not side:
            return None
        pixels = views_I3PP.float().contiguous()
        positions = sam.resize_positions(self._encoder.pos_embed, side).contiguous()
        tables = []
        for block in self._sam_blocks:
            window = block.window_size or side
            for table_LC in (block.attn.rel_pos_h, block.attn.rel_pos_w):
                tables.append(sam.resize_distances(table_LC, window).contiguous())
        map_side = -(-side // 4)
        out_IhwD = self._encoder.pos_embed.new_empty(I, map_side, map_side, self._channels)
        views = SamViewsC(
            pixels=pixels.data_ptr(),
            views=I,
            side_px=width,
            positions=positions.data_ptr(),
            tables=(ctypes.c_void_p * len(tables))(*(table.data_ptr() for table in tables)),
            out=out_IhwD.data_ptr(),
        )
        is_done = self._kernels.encode_sam(ctypes.byref(self._sam), ctypes.byref(views), torch.get_num_threads())
        return out_IhwD.permute(0, 3, 1, 2) if is_done else None
