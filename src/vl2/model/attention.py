"""Multi-head attention (tiny) and multi-head latent attention (small, base), with the same signature.

Latent attention has two forms with the same result. The naive form expands the latent into the keys and values of every
head; it is used where many queries share the expansion. The absorbed form applies the expansion to the query and to the
output instead, so that a single query reads only the latent. A test checks that the two forms agree.

Each packed document attends to itself alone. A mask over the whole sequence would need work that grows with the square
of its length. CUDA therefore uses the variable-length kernel, except in float32, which the kernel does not support.
Other devices, and documents with a window over their answers, run one document after another.

Source: arXiv 2405.04434 (latent attention); released DeepseekV2Attention. Golden: tests/golden/reference/model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import LanguageConfig
from vl2.model.cache import CacheLayer, attend_cached
from vl2.model.layers import RMSNorm
from vl2.model.mask import AttentionMask, Documents
from vl2.model.rope import Angles, rotate_halves, rotate_pairs

MLAForm = Literal["auto", "naive", "absorbed"]


def of_last(x_BSD: Tensor, angles: Angles, mask: AttentionMask) -> tuple[Tensor, Angles, AttentionMask]:
    """Return the last position of each row [B, 1, D], its angles, and its mask."""
    S = x_BSD.shape[1]
    if S == 1:
        return x_BSD, angles, mask
    return x_BSD[:, -1:], (angles[0][:, -1:], angles[1][:, -1:]), mask.of_last(S)


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Return softmax(q k^T * scale) v, [B, H, S, C]. If keys and values have fewer heads, query heads share them."""
    width, wanted = v_BHLC.shape[-1], q_BHSC.shape[-1]
    if width != wanted:
        # The fused kernels need values as wide as queries. Without them PyTorch builds the whole [H, S, L] matrix.
        v_BHLC = F.pad(v_BHLC, (0, wanted - width))
    if mask.documents is not None:
        return attend_documents(q_BHSC, k_BHLC, v_BHLC, mask.documents, scale)[..., :width]
    out = F.scaled_dot_product_attention(
        q_BHSC,
        k_BHLC,
        v_BHLC,
        attn_mask=mask.tensor,
        is_causal=mask.is_causal,
        scale=scale,
        enable_gqa=q_BHSC.shape[1] != k_BHLC.shape[1],
    )
    return out[..., :width]


def attend_documents(q_1HSC: Tensor, k_1HSC: Tensor, v_1HSC: Tensor, documents: Documents, scale: float) -> Tensor:
    """Return the causal attention within each document, [1, H, S, C].

    A test compares every branch with the mask of the whole sequence.
    """
    num_shared = q_1HSC.shape[1] // k_1HSC.shape[1]
    if documents.lengths:
        # Forward and backward together, the CPU's kernel takes twice as long in bfloat16 as in float32.
        inputs = [t if t.is_cuda else t.float() for t in (q_1HSC, k_1HSC, v_1HSC)]
        masks = documents.masks or (None,) * len(documents.lengths)
        outputs = [
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=num_shared > 1
            )
            for q, k, v, mask in zip(*(t.split(documents.lengths, dim=2) for t in inputs), masks, strict=True)
        ]
        return torch.cat(outputs, dim=2).to(q_1HSC.dtype)
    if num_shared > 1:
        k_1HSC, v_1HSC = k_1HSC.repeat_interleave(num_shared, 1), v_1HSC.repeat_interleave(num_shared, 1)
    if not q_1HSC.is_cuda or q_1HSC.dtype == torch.float32:
        return F.scaled_dot_product_attention(
            q_1HSC, k_1HSC, v_1HSC, attn_mask=documents.mask(q_1HSC.shape[2]), scale=scale
        )
    # Imported here because it loads PyTorch's compiler: 70 MB and some seconds, which a CPU does not need.
    from torch.nn.attention.varlen import varlen_attn

    q_SHC, k_SHC, v_SHC = (t[0].transpose(0, 1).contiguous() for t in (q_1HSC, k_1HSC, v_1HSC))
    borders, longest = documents.cu_seqlens, documents.max_seqlen
    # The window (-1, 0) has no limit toward earlier keys and ends at the query, so it is causal.
    out_SHC = varlen_attn(q_SHC, k_SHC, v_SHC, borders, borders, longest, longest, scale=scale, window_size=(-1, 0))
    assert isinstance(out_SHC, Tensor)
    return out_SHC.transpose(0, 1).unsqueeze(0)


class MultiHeadAttention(nn.Module):
    """Multi-head attention whose queries and keys are rotated over the whole head width (`rotate_halves`)."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_kv_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        D, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(D, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(D, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(D, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, D, bias=bias)

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Return the output of all positions [B, S, D], or with `last_only` of the last position [B, 1, D].

        Keys and values are computed for all positions in both cases.
        """
        asked_BSD, asked_angles, mask = of_last(x_BSD, angles, mask) if last_only else (x_BSD, angles, mask)
        q_BHSC, (k_BHLC, v_BHLC) = self.queries(asked_BSD, asked_angles), self.keys_and_values(x_BSD, angles)
        out_BHSC = attend_cached(
            cache, (q_BHSC,), (k_BHLC, v_BHLC), lambda q, kv: attend(q[0], kv[0], kv[1], mask, self.head_dim**-0.5)
        )
        out_BSD: Tensor = self.o_proj(out_BHSC.transpose(1, 2).flatten(2))
        return out_BSD

    def queries(self, x_BSD: Tensor, angles: Angles) -> Tensor:
        """Return the rotated queries, [B, H, S, C]."""
        return rotate_halves(self.q_proj(x_BSD).unflatten(-1, (self.num_heads, -1)), angles).transpose(1, 2)

    def keys_and_values(self, x_BSD: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Return the rotated keys and the values, [B, KV heads, S, C] each."""
        k_BSHC = rotate_halves(self.k_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1)), angles)
        v_BSHC = self.v_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        return k_BSHC.transpose(1, 2), v_BSHC.transpose(1, 2)


class LatentAttention(nn.Module):
    """Multi-head latent attention: all heads get their keys and values from one normed latent and one rotary key."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        D, H, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.num_heads, self.rank = H, config.kv_lora_rank
        self.nope_dim, self.rope_dim, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5
        if config.rope_scaling is not None:
            self.scale *= config.rope_scaling.softmax_scale
        self.form: MLAForm = "auto"
        query_width = H * (self.nope_dim + self.rope_dim)
        self.compresses_queries = config.q_lora_rank is not None
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(D, query_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(D, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps=1e-6)
            self.q_b_proj = nn.Linear(config.q_lora_rank, query_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(D, self.rank + self.rope_dim, bias=bias)
        self.kv_a_layernorm = RMSNorm(self.rank, eps=1e-6)
        self.kv_b_proj = nn.Linear(self.rank, H * (self.nope_dim + self.v_dim), bias=False)
        self.o_proj = nn.Linear(H * self.v_dim, D, bias=bias)

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """Return the output of all positions [B, S, D], or with `last_only` of the last position [B, 1, D].

        The latents are computed for all positions in both cases.
        """
        out_BSD: Tensor = self.o_proj(self.attended(x_BSD, angles, mask, cache, last_only=last_only).flatten(2))
        return out_BSD

    def attended(
        self, x_BSD: Tensor, angles: Angles, mask: AttentionMask, cache: CacheLayer | None, *, last_only: bool
    ) -> Tensor:
        """Return the output of every head before the output projection, [B, S, H, C]."""
        asked_BSD, asked_angles, mask = of_last(x_BSD, angles, mask) if last_only else (x_BSD, angles, mask)
        q_nope_BSHC, q_rope_BSHC = self.queries(asked_BSD, asked_angles)
        shared_BSC = self.latents(x_BSD, angles)
        if self._is_absorbed(num_queries=asked_BSD.shape[1]):
            # Absorbing and expanding do not depend on the cached length, so they run for all rows at once.
            q_BHSC = self._absorb(q_nope_BSHC, q_rope_BSHC)
            out_BHSR = attend_cached(
                cache, (q_BHSC,), (shared_BSC,), lambda q, kv: self._attend_latent(q[0], kv[0], mask)
            )
            return self._expand(out_BHSR)
        queries = q_nope_BSHC, q_rope_BSHC
        return attend_cached(cache, queries, (shared_BSC,), lambda q, kv: self._attend_heads(q[0], q[1], kv[0], mask))

    def _is_absorbed(self, num_queries: int) -> bool:
        return self.form == "absorbed" or (self.form == "auto" and num_queries == 1 and self._can_absorb())

    def _can_absorb(self) -> bool:
        # The absorbed form reads the weight matrix directly and would skip what an adapter or quantized layer computes.
        return type(self.kv_b_proj) is nn.Linear

    def queries(self, x_BSD: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """Return the channels of the queries without position and the rotated channels, [B, S, H, C] each."""
        if self.compresses_queries:
            q_BSD = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        else:
            q_BSD = self.q_proj(x_BSD)
        q_BSHC = q_BSD.unflatten(-1, (self.num_heads, -1))
        q_nope_BSHC, q_rope_BSHC = q_BSHC.split((self.nope_dim, self.rope_dim), dim=-1)
        return q_nope_BSHC, rotate_pairs(q_rope_BSHC, angles)

    def latents(self, x_BSD: Tensor, angles: Angles) -> Tensor:
        """Return the normed latent and the rotated shared key in one tensor [B, S, R + rope], as it is cached."""
        latent_BSR, k_rope_BSC = self.kv_a_proj_with_mqa(x_BSD).split((self.rank, self.rope_dim), dim=-1)
        k_rope_BSC = rotate_pairs(k_rope_BSC.unsqueeze(2), angles).squeeze(2)
        return torch.cat((self.kv_a_layernorm(latent_BSR), k_rope_BSC), dim=-1)

    def _attend_heads(
        self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, mask: AttentionMask
    ) -> Tensor:
        """Attend in the naive form: expand the latent into keys and values of every head. Return [B, S, H, C]."""
        q_BHSC, k_BHLC, v_BHLC = self.heads(q_nope_BSHC, q_rope_BSHC, shared_BLC)
        return attend(q_BHSC, k_BHLC, v_BHLC, mask, self.scale).transpose(1, 2)

    def heads(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of every head, [B, H, S or L, C] each."""
        latent_BLR, k_rope_BLC = shared_BLC.split((self.rank, self.rope_dim), dim=-1)
        kv_BLHC = self.kv_b_proj(latent_BLR).unflatten(-1, (self.num_heads, -1))
        k_nope_BLHC, v_BLHC = kv_BLHC.split((self.nope_dim, self.v_dim), dim=-1)
        k_rope_BLHC = k_rope_BLC.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        q_BHSC = torch.cat((q_nope_BSHC, q_rope_BSHC), dim=-1).transpose(1, 2)
        k_BHLC = torch.cat((k_nope_BLHC, k_rope_BLHC), dim=-1).transpose(1, 2)
        return q_BHSC, k_BHLC, v_BLHC.transpose(1, 2)

    @property
    def _expansion(self) -> tuple[Tensor, Tensor]:
        """The two parts of `kv_b_proj`: from the latent to keys and from the latent to values, [H, C, R] each."""
        expand_HCR = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        key_HCR, value_HCR = expand_HCR.split((self.nope_dim, self.v_dim), dim=1)
        return key_HCR, value_HCR

    def _absorb(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor) -> Tensor:
        """Return queries that are multiplied by the latents directly, [B, H, S, R + rope]."""
        q_latent_BHSR = torch.einsum("bshc,hcr->bhsr", q_nope_BSHC, self._expansion[0])
        return torch.cat((q_latent_BHSR, q_rope_BSHC.transpose(1, 2)), dim=-1)

    def _attend_latent(self, q_BHSC: Tensor, shared_BLC: Tensor, mask: AttentionMask) -> Tensor:
        """Attend in the absorbed form, with a float32 softmax. Return weighted sums of latents, [B, H, S, R]."""
        scores_BHSL = (q_BHSC.flatten(1, 2) @ shared_BLC.mT).unflatten(1, q_BHSC.shape[1:3]).float() * self.scale
        visible = mask.dense(q_BHSC.shape[2], shared_BLC.shape[1], shared_BLC.device)
        if visible is not None:
            scores_BHSL = scores_BHSL.masked_fill(~visible, float("-inf"))
        p_BHSL = scores_BHSL.softmax(dim=-1).to(q_BHSC.dtype)
        latent_BLR = shared_BLC[..., : self.rank]
        out_BHSR: Tensor = (p_BHSL.flatten(1, 2) @ latent_BLR).unflatten(1, q_BHSC.shape[1:3])
        return out_BHSR

    def _expand(self, out_BHSR: Tensor) -> Tensor:
        """Return the heads' outputs [B, S, H, C] of weighted sums of latents."""
        return torch.einsum("bhsr,hcr->bshc", out_BHSR, self._expansion[1])
