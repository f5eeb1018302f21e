"""Counterparts of the image encoders' modules that use the CPU kernels.

As in `vl2.runtime.cpu_modules`, a module computes what the plain one does where a kernel does not apply.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vl2.kernels import load_kernels
from vl2.kernels import prefill_ops as kernels
from vl2.kernels.activation import Activation
from vl2.model import clip, query_encoder, sam, vision
from vl2.model.rope import Angles
from vl2.quant.modules import QuantizedLinear
from vl2.runtime.fused_encoders import FusedEncoder, FusedSam
from vl2.runtime.linear import is_plain_linear, linear


class CpuBlock(vision.Block):
    def forward(self, x: Tensor) -> Tensor:
        qkv = linear(self.attn.qkv, self.norm1(x))
        q, k, v = qkv.unflatten(-1, (3, self.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = linear(self.attn.proj, attend_patches(q, k, v).transpose(1, 2).flatten(2), residual=x)
        return linear(self.mlp.fc2, linear(self.mlp.fc1, self.norm2(x), activation=Activation.GELU_TANH), residual=x)


class CpuVisionEncoder(vision.VisionEncoder):
    fused: FusedEncoder | None = None  # runs all blocks in one call

    def forward(self, tiles_I3PP: Tensor) -> Tensor:
        x = self.embed(tiles_I3PP)
        done = self.fused.run(x) if self.fused is not None and kernels.applies(x) else None
        if done is None:
            for block in self.blocks:
                x = block(x)
        out: Tensor = self.norm(x if done is None else done)
        return out


class CpuSamBlock(sam.Block):
    """A block of SAM. The attention finds its windows in the map, so that places outside of it are not multiplied."""

    def forward(self, x_IhwD: Tensor) -> Tensor:
        attended_IhwD = self._attend_windows(self.norm1(x_IhwD))
        if attended_IhwD is None:
            return super().forward(x_IhwD)
        x_IhwD = linear(self.attn.proj, attended_IhwD, residual=x_IhwD)
        hidden = linear(self.mlp.lin1, self.norm2(x_IhwD), activation=Activation.GELU)
        return linear(self.mlp.lin2, hidden, residual=x_IhwD)

    def _attend_windows(self, x_IhwD: Tensor) -> Tensor | None:
        """Return the heads' outputs before the projection, [I, h, w, D], or None if the kernel does not apply."""
        attention, is_square = self.attn, x_IhwD.shape[1] == x_IhwD.shape[2]
        is_for_kernel = has_attention() and kernels.applies(x_IhwD, attention.rel_pos_h, attention.rel_pos_w)
        if not is_for_kernel or not is_square:
            return None
        window = self.window_size or x_IhwD.shape[1]
        tables = (
            sam.resize_distances(table_LC, window).contiguous()
            for table_LC in (attention.rel_pos_h, attention.rel_pos_w)
        )
        return kernels.attend_windows(
            linear(attention.qkv, x_IhwD), of_zeros(attention.qkv, x_IhwD), attention.num_heads, window, *tables
        )


class CpuSamEncoder(sam.SamEncoder):
    fused: FusedSam | None = None

    def forward(self, views_I3PP: Tensor) -> Tensor:
        is_for_fused = self.fused is not None and kernels.applies(self.pos_embed)
        map_ICHW = self.fused.run(views_I3PP) if self.fused is not None and is_for_fused else None
        return super().forward(views_I3PP) if map_ICHW is None else map_ICHW


class CpuClipLayer(clip.Layer):
    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = self.self_attn, self.mlp
        qkv = linear(attention.qkv_proj, self.layer_norm1(x))
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        x = linear(attention.out_proj, attend_patches(q, k, v).transpose(1, 2).flatten(2), residual=x)
        return linear(mlp.fc2, linear(mlp.fc1, self.layer_norm2(x), activation=Activation.QUICK_GELU), residual=x)


class CpuClipEncoder(clip.ClipEncoder):
    fused: FusedEncoder | None = None  # runs all blocks in one call

    def forward(self, map_IDhw: Tensor) -> Tensor:
        x = self.pre_layrnorm(self.embeddings(map_IDhw))
        done = self.fused.run(x) if self.fused is not None and kernels.applies(x) else None
        out: Tensor = self.transformer(x) if done is None else done
        return out


class CpuQueryAttention(query_encoder.Attention):
    """The attention of DeepSeek-OCR-2's query encoder, in two calls: tokens of the map, and queries."""

    def forward(self, x_ISD: Tensor, angles: Angles, mask_SS: Tensor) -> Tensor:
        if not has_attention() or not kernels.applies(x_ISD):
            return super().forward(x_ISD, angles, mask_SS)
        I, S, _ = x_ISD.shape
        each = tuple(angle.expand(I, -1, -1).contiguous() for angle in angles)

        def heads(layer: nn.Linear, num_heads: int) -> Tensor:
            heads_ISHC: Tensor = layer(x_ISD).unflatten(-1, (num_heads, -1))
            return heads_ISHC

        q_ISHC, k_ISHC = (
            kernels.rotate_halves(heads(layer, num_heads).contiguous(), each[0], each[1])
            for layer, num_heads in ((self.q_proj, self.num_heads), (self.k_proj, self.num_kv_heads))
        )
        q_IHSC, k_IHSC, v_IHSC = (t.transpose(1, 2) for t in (q_ISHC, k_ISHC, heads(self.v_proj, self.num_kv_heads)))
        of_map, scale = S // 2, q_IHSC.shape[-1] ** -0.5
        from_map = kernels.attend(
            q_IHSC[:, :, :of_map], k_IHSC[:, :, :of_map], v_IHSC[:, :, :of_map], prefix_length=None, scale=scale
        )
        from_queries = kernels.attend(q_IHSC[:, :, of_map:], k_IHSC, v_IHSC, prefix_length=of_map, scale=scale)
        if from_map is None or from_queries is None:
            return super().forward(x_ISD, angles, mask_SS)
        out: Tensor = self.o_proj(torch.cat((from_map, from_queries), dim=2).transpose(1, 2).flatten(2))
        return out


def attend_patches(q_IHpC: Tensor, k_IHpC: Tensor, v_IHpC: Tensor) -> Tensor:
    """Return the attention of the p patches of I tiles, [I, H, p, C], by the kernel where it applies."""
    if kernels.applies(q_IHpC, k_IHpC, v_IHpC):
        out_IHpC = kernels.attend(q_IHpC, k_IHpC, v_IHpC, None, q_IHpC.shape[-1] ** -0.5)
        if out_IHpC is not None:
            return out_IHpC
    return vision.attend(q_IHpC, k_IHpC, v_IHpC)


def has_attention() -> bool:
    """Return whether the loaded kernels attend many queries: those for AVX-512 and AMX do."""
    library = load_kernels()
    return library is not None and library.has_bfloat16_products


def of_zeros(layer: nn.Module, like: Tensor) -> Tensor:
    """Return the output of a linear layer for a row of zeros, in the dtype of `like`: its bias if it has one."""
    if is_plain_linear(layer) or isinstance(layer, QuantizedLinear):
        return like.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
    out: Tensor = layer(like.new_zeros(1, like.shape[-1]))[0]
    return out
