"""Attention: plain multi-head (tiny) and multi-head latent (small, base), one signature for both.

Latent attention has two forms that give the same result. The naive one expands the latent into keys
and values of every head and is used where many queries share the expansion. The absorbed one moves the
expansion to the query and the output, so that a single query reads only the latent. A test holds them equal.

Packed documents are attended each by itself, never through a mask of the whole sequence, whose work grows with
the square of its length: by the variable-length kernel on CUDA, one after another elsewhere.

Source: arXiv 2405.04434 (latent attention); released DeepseekV2Attention. Golden: tests/golden/reference/model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import LanguageConfig
from vl2.model.cache import Cache, CacheRows
from vl2.model.float_linear import is_plain_linear
from vl2.model.layers import RMSNorm, linear
from vl2.model.rope import Angles, rotate_halves, rotate_pairs

MLAForm = Literal["auto", "naive", "absorbed"]
AnyCache = Cache | CacheRows


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of a packed sequence lie."""

    cu_seqlens: Tensor  # int32 [n + 1]; document k is cu_seqlens[k] : cu_seqlens[k + 1]
    max_seqlen: int  # the longest, known on the host
    lengths: tuple[int, ...]  # without empty ones; left empty on a device, where nothing loops over them

    def mask(self, S: int) -> Tensor:
        """Return which of all places may see which, bool [S, S]; for what has no better way."""
        borders = self.cu_seqlens
        document_S = torch.bucketize(torch.arange(S, device=borders.device), borders[1:], right=True)
        return (document_S[:, None] == document_S[None, :]).tril()


@dataclass(frozen=True, kw_only=True)
class AttentionMask:
    """Which keys each query may see: a tensor, or one of the cases that need none."""

    tensor: Tensor | None  # bool [B, 1, S, L], True where visible
    is_causal: bool  # query i sees keys 0..i; only with S == L and no mask
    documents: Documents | None = None  # query i sees keys 0..i of its own document; one row, S == L
    prefix_length: int | None = None  # where it is known that query i sees keys 0..prefix_length + i in every row

    @classmethod
    def of_rows(cls, attention_mask_BS: Tensor | None) -> AttentionMask:
        """Return a causal mask for each row; `attention_mask_BS` is needed only where padding stands before tokens."""
        if attention_mask_BS is None:
            return cls(tensor=None, is_causal=True)
        S = attention_mask_BS.shape[1]
        causal = torch.ones(S, S, dtype=torch.bool, device=attention_mask_BS.device).tril()
        # A padded query sees itself: a row that sees nothing would be NaN, and NaN spreads.
        itself = torch.eye(S, dtype=torch.bool, device=causal.device)
        return cls(tensor=(causal & attention_mask_BS[:, None, None, :]) | itself, is_causal=False)

    @classmethod
    def of_documents(cls, cu_seqlens: Tensor, max_seqlen: int) -> AttentionMask:
        """Return a causal mask within each document of one packed row, which the borders cover from end to end."""
        lengths = () if cu_seqlens.is_cuda else tuple(n for n in cu_seqlens.diff().tolist() if n)
        documents = Documents(cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, lengths=lengths)
        return cls(tensor=None, is_causal=False, documents=documents)

    @classmethod
    def of_cache(cls, lengths: list[int], num_new: int, device: torch.device) -> AttentionMask:
        """Return the mask of S new queries over rows that already hold `lengths` positions."""
        prefix_length = lengths[0] if len(set(lengths)) == 1 else None
        if prefix_length == 0:
            return cls(tensor=None, is_causal=True, prefix_length=0)
        if prefix_length is not None and num_new == 1:
            return cls(tensor=None, is_causal=False, prefix_length=prefix_length)
        last_B = torch.tensor(lengths, device=device)
        key_L = torch.arange(max(lengths) + num_new, device=device)
        query_S = torch.arange(num_new, device=device)
        visible = key_L <= (last_B[:, None, None] + query_S[None, :, None])
        return cls(tensor=visible.unsqueeze(1), is_causal=False, prefix_length=prefix_length)

    def of_last(self, S: int) -> AttentionMask:
        """Return the mask of the last of S queries alone. There is none for packed documents."""
        assert self.documents is None, "packed documents have no mask of the last query alone"
        if self.prefix_length is not None:  # then it sees every key
            return AttentionMask(tensor=None, is_causal=False, prefix_length=self.prefix_length + S - 1)
        return AttentionMask(tensor=None if self.tensor is None else self.tensor[:, :, -1:], is_causal=False)

    def dense(self, S: int, L: int, device: torch.device) -> Tensor | None:
        """Return it as a tensor that broadcasts to [B, H, S, L]; None where every key is visible."""
        if self.documents is not None:
            return self.documents.mask(S)
        return torch.ones(S, L, dtype=torch.bool, device=device).tril() if self.is_causal else self.tensor


@dataclass(frozen=True, kw_only=True)
class Queries:
    """The positions that are queries: all, or the last of each row. Keys and values come from all of them."""

    x_BSD: Tensor
    angles: Angles
    mask: AttentionMask
    residual_BSD: Tensor | None

    @classmethod
    def of(
        cls, x_BSD: Tensor, angles: Angles, mask: AttentionMask, residual_BSD: Tensor | None, *, last_only: bool
    ) -> Queries:
        if not last_only or x_BSD.shape[1] == 1:
            return cls(x_BSD=x_BSD, angles=angles, mask=mask, residual_BSD=residual_BSD)
        return cls(
            x_BSD=x_BSD[:, -1:],
            angles=(angles[0][:, -1:], angles[1][:, -1:]),
            mask=mask.of_last(x_BSD.shape[1]),
            residual_BSD=None if residual_BSD is None else residual_BSD[:, -1:],
        )


def attend(q_BHSC: Tensor, k_BHLC: Tensor, v_BHLC: Tensor, mask: AttentionMask, scale: float) -> Tensor:
    """Return softmax(q k^T * scale) v, with keys and values of fewer heads shared between query heads."""
    width, wanted = v_BHLC.shape[-1], q_BHSC.shape[-1]
    if width != wanted:
        # The fused kernels take one head width; without them the whole [H, S, L] matrix is built.
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
    """Attend within each document. A test holds every way equal to the mask of the whole sequence."""
    num_shared = q_1HSC.shape[1] // k_1HSC.shape[1]
    if documents.lengths:
        # The CPU's kernel is two times slower in bfloat16, forward and backward together.
        parts = (t.float().split(documents.lengths, dim=2) for t in (q_1HSC, k_1HSC, v_1HSC))
        outputs = [
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=num_shared > 1)
            for q, k, v in zip(*parts, strict=True)
        ]
        return torch.cat(outputs, dim=2).to(q_1HSC.dtype)
    if num_shared > 1:
        k_1HSC, v_1HSC = k_1HSC.repeat_interleave(num_shared, 1), v_1HSC.repeat_interleave(num_shared, 1)
    if not q_1HSC.is_cuda or q_1HSC.dtype == torch.float32:
        return F.scaled_dot_product_attention(
            q_1HSC, k_1HSC, v_1HSC, attn_mask=documents.mask(q_1HSC.shape[2]), scale=scale
        )
    # Imported where it is used: it brings PyTorch's compiler, 70 MB and some seconds that a CPU has no use for.
    from torch.nn.attention.varlen import varlen_attn

    q_SHC, k_SHC, v_SHC = (t[0].transpose(0, 1).contiguous() for t in (q_1HSC, k_1HSC, v_1HSC))
    borders, longest = documents.cu_seqlens, documents.max_seqlen
    out_SHC = varlen_attn(q_SHC, k_SHC, v_SHC, borders, borders, longest, longest, scale=scale, window_size=(-1, 0))
    assert isinstance(out_SHC, Tensor)
    return out_SHC.transpose(0, 1).unsqueeze(0)


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
        self.rotate, self.attend, self.linear = rotate_halves, attend, linear  # kernels may take their places

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: AnyCache | None,
        layer: int,
        residual_BSD: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the attention of x, or `residual` plus that; of all positions or of the last."""
        queries = Queries.of(x_BSD, angles, mask, residual_BSD, last_only=last_only)
        q_BSHC = self.rotate(
            self.linear(self.q_proj, queries.x_BSD).unflatten(-1, (self.num_heads, -1)), queries.angles
        )
        k_BSHC = self.linear(self.k_proj, x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        place_BSHC = None
        if isinstance(cache, Cache) and x_BSD.shape[0] == 1 and x_BSD.shape[1] > 1:
            # Keys of a prompt are rotated into their place.
            place_BSHC = cache.place(layer, x_BSD.shape[1])[0].transpose(1, 2)
        k_BSHC = self.rotate(k_BSHC, angles, place_BSHC)
        v_BSHC = self.linear(self.v_proj, x_BSD).unflatten(-1, (self.num_kv_heads, -1))
        q_BHSC, k_BHLC, v_BHLC = (t.transpose(1, 2) for t in (q_BSHC, k_BSHC, v_BSHC))
        scale = self.head_dim**-0.5
        if isinstance(cache, CacheRows):
            out_BHSC = cache.attend_each(
                layer, (k_BHLC, v_BHLC), lambda i, held: attend(q_BHSC[i : i + 1], held[0], held[1], mask, scale)
            )
        else:
            if cache is not None:
                k_BHLC, v_BHLC = cache.write(layer, (k_BHLC, v_BHLC))
            out_BHSC = self.attend(q_BHSC, k_BHLC, v_BHLC, queries.mask, scale)
        return self.linear(self.o_proj, out_BHSC.transpose(1, 2).flatten(2), residual=queries.residual_BSD)


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
        self.attend, self.linear = attend, linear  # kernels may take their places

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: AnyCache | None,
        layer: int,
        residual_BSD: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Return the attention of x, or `residual` plus that; of all positions or of the last."""
        queries = Queries.of(x_BSD, angles, mask, residual_BSD, last_only=last_only)
        q_BSHC = self._queries(queries.x_BSD).unflatten(-1, (self.num_heads, -1))
        q_nope_BSHC, q_rope_BSHC = q_BSHC.split((self.nope_dim, self.rope_dim), dim=-1)
        q_rope_BSHC = rotate_pairs(q_rope_BSHC, queries.angles)

        latent_BSR, k_rope_BSC = self.linear(self.kv_a_proj_with_mqa, x_BSD).split((self.rank, self.rope_dim), dim=-1)
        k_rope_BSC = rotate_pairs(k_rope_BSC.unsqueeze(2), angles).squeeze(2)
        shared_BLC = torch.cat((self.kv_a_layernorm(latent_BSR), k_rope_BSC), dim=-1)
        is_absorbed = self.form == "absorbed" or (self.form == "auto" and q_BSHC.shape[1] == 1 and self._can_absorb())
        if isinstance(cache, CacheRows):
            out_BSHC = self._each_row(q_nope_BSHC, q_rope_BSHC, shared_BLC, mask, cache, layer, is_absorbed)
        else:
            if cache is not None:
                (shared_BLC,) = cache.write(layer, (shared_BLC,))
            attention = self._absorbed if is_absorbed else self._naive
            out_BSHC = attention(q_nope_BSHC, q_rope_BSHC, shared_BLC, queries.mask)
        return self.linear(self.o_proj, out_BSHC.flatten(2), residual=queries.residual_BSD)

    def _each_row(
        self,
        q_nope_BSHC: Tensor,
        q_rope_BSHC: Tensor,
        shared_BSC: Tensor,
        mask: AttentionMask,
        cache: CacheRows,
        layer: int,
        is_absorbed: bool,
    ) -> Tensor:
        if not is_absorbed:
            return cache.attend_each(
                layer,
                (shared_BSC,),
                lambda i, held: self._naive(q_nope_BSHC[i : i + 1], q_rope_BSHC[i : i + 1], held[0], mask),
            )
        # What does not depend on the length of a row is done for all rows at once.
        q_BHSC = self._absorb(q_nope_BSHC, q_rope_BSHC)
        out_BHSR = cache.attend_each(
            layer, (shared_BSC,), lambda i, held: self._attend_latent(q_BHSC[i : i + 1], held[0], mask)
        )
        return self._expand(out_BHSR)

    def _can_absorb(self) -> bool:
        # The absorbed form reads the matrix itself, past whatever an adapter or a quantised layer adds to it.
        return is_plain_linear(self.kv_b_proj)

    def _queries(self, x_BSD: Tensor) -> Tensor:
        if self.compresses_queries:
            return self.linear(self.q_b_proj, self.q_a_layernorm(self.linear(self.q_a_proj, x_BSD)))
        return self.linear(self.q_proj, x_BSD)

    def _naive(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, mask: AttentionMask) -> Tensor:
        latent_BLR, k_rope_BLC = shared_BLC.split((self.rank, self.rope_dim), dim=-1)
        kv_BLHC = self.linear(self.kv_b_proj, latent_BLR).unflatten(-1, (self.num_heads, -1))
        k_nope_BLHC, v_BLHC = kv_BLHC.split((self.nope_dim, self.v_dim), dim=-1)
        k_rope_BLHC = k_rope_BLC.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        q_BHSC = torch.cat((q_nope_BSHC, q_rope_BSHC), dim=-1).transpose(1, 2)
        k_BHLC = torch.cat((k_nope_BLHC, k_rope_BLHC), dim=-1).transpose(1, 2)
        return self.attend(q_BHSC, k_BHLC, v_BLHC.transpose(1, 2), mask, self.scale).transpose(1, 2)

    def _absorbed(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor, shared_BLC: Tensor, mask: AttentionMask) -> Tensor:
        return self._expand(self._attend_latent(self._absorb(q_nope_BSHC, q_rope_BSHC), shared_BLC, mask))

    @property
    def _expansion(self) -> tuple[Tensor, Tensor]:
        """The matrices from the latent to keys and to values, [H, C, R]."""
        expand_HCR = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        key_HCR, value_HCR = expand_HCR.split((self.nope_dim, self.v_dim), dim=1)
        return key_HCR, value_HCR

    def _absorb(self, q_nope_BSHC: Tensor, q_rope_BSHC: Tensor) -> Tensor:
        q_latent_BHSR = torch.einsum("bshc,hcr->bhsr", q_nope_BSHC, self._expansion[0])
        return torch.cat((q_latent_BHSR, q_rope_BSHC.transpose(1, 2)), dim=-1)

    def _attend_latent(self, q_BHSC: Tensor, shared_BLC: Tensor, mask: AttentionMask) -> Tensor:
        scores_BHSL = (q_BHSC.flatten(1, 2) @ shared_BLC.mT).unflatten(1, q_BHSC.shape[1:3]).float() * self.scale
        visible = mask.dense(q_BHSC.shape[2], shared_BLC.shape[1], shared_BLC.device)
        if visible is not None:
            scores_BHSL = scores_BHSL.masked_fill(~visible, float("-inf"))
        p_BHSL = scores_BHSL.softmax(dim=-1).to(q_BHSC.dtype)
        latent_BLR = shared_BLC[..., : self.rank]
        out_BHSR: Tensor = (p_BHSL.flatten(1, 2) @ latent_BLR).unflatten(1, q_BHSC.shape[1:3])
        return out_BHSR

    def _expand(self, out_BHSR: Tensor) -> Tensor:
        return torch.einsum("bhsr,hcr->bshc", out_BHSR, self._expansion[1])
