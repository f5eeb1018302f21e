"""Attention: plain multi-head (tiny) and multi-head latent (small, base), one signature for both.

Latent attention has two forms that give the same result. The naive one expands the latent into keys
and values of every head and is used where many queries share the expansion. The absorbed one moves the
expansion to the query and the output, so that a single query reads only the latent. A test holds them equal.

Source: arXiv 2405.04434 (latent attention); released DeepseekV2Attention. Golden: tests/golden/reference/model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import LanguageConfig
from vl2.model.cache import Cache
from vl2.model.layers import RMSNorm
from vl2.model.rope import Angles, rotate_halves, rotate_pairs

MLAForm = Literal["auto", "naive", "absorbed"]


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which keys each query may see: a mask, or one of the two cases that need none."""

    mask: Tensor | None  # bool [B, 1, S, L], True where visible
    is_causal: bool  # query i sees keys 0..i; only with S == L and no mask

    @classmethod
    def of_rows(cls, attention_mask_BS: Tensor | None) -> Reach:
        """Causal reach inside each row; `attention_mask_BS` is needed only where padding stands before tokens."""
        if attention_mask_BS is None:
            return cls(mask=None, is_causal=True)
        S = attention_mask_BS.shape[1]
        causal = torch.ones(S, S, dtype=torch.bool, device=attention_mask_BS.device).tril()
        # A padded query sees itself: a row that sees nothing would be NaN, and NaN spreads.
        itself = torch.eye(S, dtype=torch.bool, device=causal.device)
        return cls(mask=(causal & attention_mask_BS[:, None, None, :]) | itself, is_causal=False)

    @classmethod
    def of_cache(cls, lengths: list[int], num_new: int, device: torch.device) -> Reach:
        """Reach of S new queries over rows that already hold `lengths` positions."""
        if max(lengths) == 0:
            return cls(mask=None, is_causal=True)
        if num_new == 1 and len(set(lengths)) == 1:
            return cls(mask=None, is_causal=False)
        last_B = torch.tensor(lengths, device=device)
        key_L = torch.arange(max(lengths) + num_new, device=device)
        query_S = torch.arange(num_new, device=device)
        visible = key_L <= (last_B[:, None, None] + query_S[None, :, None])
        return cls(mask=visible.unsqueeze(1), is_causal=False)


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, reach: Reach, scale: float) -> Tensor:
    """Return softmax(q k^T * scale) v, with keys and values of fewer heads shared between query heads."""
    width, wanted = v_BHLC.shape[-1], q_BHSC.shape[-1]
    if width != wanted:
        # The fused kernels take one head width; without them the whole [H, S, L] matrix is built.
        v_BHLC = F.pad(v_BHLC, (0, wanted - width))
    out = F.scaled_dot_product_attention(
        q_BHSC,
        k_BHLC,
        v_BHLC,
        attn_mask=reach.mask,
        is_causal=reach.is_causal,
        scale=scale,
        enable_gqa=q_BHSC.shape[1] != k_BHLC.shape[1],
    )
    return out[..., :width]


class MultiHeadAttention(nn.Module):
    """Multi-head attention with half-split rotary keys over the whole head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_kv_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        D, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(D, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(D, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(D, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, D, bias=bias)

    def forward(self, x_BSD: Tensor, angles: Angles, reach: Reach, cache: Cache | None, layer: int) -> Tensor:
        q_BSHC = rotate_halves(self.q_proj(x_BSD).unflatten(-1, (self.num_heads, -1)), angles)
        k_BSHC = rotate_halves(self.k_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1)), angles)
        v_BSHC = self.v_proj(x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        k_BHLC, v_BHLC = k_BSHC.transpose(1, 2), v_BSHC.transpose(1, 2)
        if cache is not None:
            k_BHLC, v_BHLC = cache.write(layer, (k_BHLC, v_BHLC))
        out_BHSC = attend(q_BSHC.transpose(1, 2), k_BHLC, v_BHLC, reach, self.head_dim**-0.5)
        out: Tensor = self.o_proj(out_BHSC.transpose(1, 2).flatten(2))
        return out


class LatentAttention(nn.Module):
    """Multi-head latent attention: keys and values come from one normed latent and one shared rotary key."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        assert config.kv_lora_rank is not None
        D, H, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
        self.num_heads, self.rank = H, config.kv_lora_rank
        self.nope_dim, self.rope_dim, self.v_dim = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5
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

    def forward(self, x_BSD: Tensor, angles: Angles, reach: Reach, cache: Cache | None, layer: int) -> Tensor:
        q_BSHC = self._queries(x_BSD).unflatten(-1, (self.num_heads, -1))
        q_nope_BSHC, q_rope_BSHC = q_BSHC.split((self.nope_dim, self.rope_dim), dim=-1)
        q_rope_BSHC = rotate_pairs(q_rope_BSHC, angles)

        latent_BSR, k_rope_BSC = self.kv_a_proj_with_mqa(x_BSD).split((self.rank, self.rope_dim), dim=-1)
        k_rope_BSC = rotate_pairs(k_rope_BSC.unsqueeze(2), angles).squeeze(2)
        shared_BLC = torch.cat((self.kv_a_layernorm(latent_BSR), k_rope_BSC), dim=-1)
        if cache is not None:
            (shared_BLC,) = cache.write(layer, (shared_BLC,))

        is_absorbed = self.form == "absorbed" or (self.form == "auto" and x_BSD.shape[1] == 1 and self._can_absorb())
        attention = self._absorbed if is_absorbed else self._naive
        out: Tensor = self.o_proj(attention(q_nope_BSHC, q_rope_BSHC, shared_BLC, reach).flatten(2))
        return out

    def _can_absorb(self) -> bool:
        # The absorbed form reads the matrix itself, past whatever an adapter or a quantised layer adds to it.
        return type(self.kv_b_proj) is nn.Linear

    def _queries(self, x_BSD: Tensor) -> Tensor:
        if self.compresses_queries:
            x_BSD = self.q_a_layernorm(self.q_a_proj(x_BSD))
            compressed: Tensor = self.q_b_proj(x_BSD)
            return compressed
        q: Tensor = self.q_proj(x_BSD)
        return q

    def _naive(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, reach: Reach) -> Tensor:
        latent_BLR, k_rope_BLC = shared_BLC.split((self.rank, self.rope_dim), dim=-1)
        kv_BLHC = self.kv_b_proj(latent_BLR).unflatten(-1, (self.num_heads, -1))
        k_nope_BLHC, v_BLHC = kv_BLHC.split((self.nope_dim, self.v_dim), dim=-1)
        k_rope_BLHC = k_rope_BLC.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        q_BHSC = torch.cat((q_nope_BSHC, q_rope_BSHC), dim=-1).transpose(1, 2)
        k_BHLC = torch.cat((k_nope_BLHC, k_rope_BLHC), dim=-1).transpose(1, 2)
        return attend(q_BHSC, k_BHLC, v_BLHC.transpose(1, 2), reach, self.scale).transpose(1, 2)

    def _absorbed(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, reach: Reach) -> Tensor:
        expand_HCR = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        key_HCR, value_HCR = expand_HCR.split((self.nope_dim, self.v_dim), dim=1)
        q_latent_BHSR = torch.einsum("bshc,hcr->bhsr", q_nope_BSHC, key_HCR)
        q_BHSC = torch.cat((q_latent_BHSR, q_rope_BSHC.transpose(1, 2)), dim=-1)

        scores_BHSL = (q_BHSC.flatten(1, 2) @ shared_BLC.mT).unflatten(1, q_BHSC.shape[1:3]).float() * self.scale
        if reach.is_causal:
            S, L = scores_BHSL.shape[-2:]
            visible = torch.ones(S, L, dtype=torch.bool, device=scores_BHSL.device).tril()
            scores_BHSL = scores_BHSL.masked_fill(~visible, float("-inf"))
        elif reach.mask is not None:
            scores_BHSL = scores_BHSL.masked_fill(~reach.mask, float("-inf"))
        p_BHSL = scores_BHSL.softmax(dim=-1).to(q_BHSC.dtype)

        latent_BLR = shared_BLC[..., : self.rank]
        out_BHSR = (p_BHSL.flatten(1, 2) @ latent_BLR).unflatten(1, q_BHSC.shape[1:3])
        return torch.einsum("bhsr,hcr->bshc", out_BHSR, value_HCR)
