"""The second half of DeepSeek-OCR-2's encoder: a Qwen2 decoder that reads SAM's map and then learned queries.

There is one query for each token of the map. Tokens of the map see one another, and a query sees the whole map and the
queries before it. The decoder's output at the queries is the feature, so the order of an image's tokens is learned. The
decoder has no token table. Its linear layers of queries, keys and values have biases, and the others have none.

I views, h x w tokens of a map, S = 2 h w tokens of the decoder, H heads, C channels per head.

Source: arXiv 2601.20552; released `deepencoderv2/qwen2_d2e.py`. Golden: tests/golden/ocr.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.deep_encoder_config import QUERY_VIEWS_PX, QueryEncoderConfig
from vl2.errors import UserError
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.rope import Angles, rotary_angles, rotate_halves


class Attention(nn.Module):
    """Attention with rotated queries and keys. Several query heads share one head of keys and values."""

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.heads, config.kv_heads
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.dim, config.dim)
        self.k_proj = nn.Linear(config.dim, kv_width)
        self.v_proj = nn.Linear(config.dim, kv_width)
        self.o_proj = nn.Linear(config.dim, config.dim, bias=False)

    def forward(self, x_ISD: Tensor, angles: Angles, mask_SS: Tensor) -> Tensor:
        q_ISHC = rotate_halves(self.q_proj(x_ISD).unflatten(-1, (self.num_heads, -1)), angles)
        k_ISHC = rotate_halves(self.k_proj(x_ISD).unflatten(-1, (self.num_kv_heads, -1)), angles)
        v_ISHC = self.v_proj(x_ISD).unflatten(-1, (self.num_kv_heads, -1))
        q_IHSC, k_IHSC, v_IHSC = (t.transpose(1, 2) for t in (q_ISHC, k_ISHC, v_ISHC))
        seen = F.scaled_dot_product_attention(
            q_IHSC, k_IHSC, v_IHSC, attn_mask=mask_SS, enable_gqa=self.num_heads != self.num_kv_heads
        )
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out


class Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: QueryEncoderConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config.dim, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.dim, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.dim, config.rms_norm_eps)

    def forward(self, x_ISD: Tensor, angles: Angles, mask_SS: Tensor) -> Tensor:
        x_ISD = x_ISD + self.self_attn(self.input_layernorm(x_ISD), angles, mask_SS)
        out: Tensor = x_ISD + self.mlp(self.post_attention_layernorm(x_ISD))
        return out


class QueryEncoder(nn.Module):
    """Encode maps [I, D, h, w] as features [I, h * w, D]. Raise UserError for a map that has no queries."""

    def __init__(self, config: QueryEncoderConfig, pixels_per_token: int) -> None:
        super().__init__()
        small, large = ((view_px // pixels_per_token) ** 2 for view_px in QUERY_VIEWS_PX)
        self.pixels_per_token = pixels_per_token
        self.head_dim, self.rope_theta = config.head_dim, config.rope_theta
        self.query_768 = nn.Embedding(small, config.dim)
        self.query_1024 = nn.Embedding(large, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim, config.rms_norm_eps)

    def forward(self, map_IDhw: Tensor) -> Tensor:
        num_views, _, _, side = map_IDhw.shape
        queries_QD = self._queries(side)
        num_queries = len(queries_QD)
        x_ISD = torch.cat(
            (map_IDhw.flatten(2).transpose(1, 2), queries_QD.to(map_IDhw.dtype).expand(num_views, -1, -1)), dim=1
        )
        positions_1S = torch.arange(2 * num_queries, device=x_ISD.device).unsqueeze(0)
        angles = rotary_angles(positions_1S, self.head_dim, self.rope_theta)
        mask_SS = query_mask(num_queries, x_ISD.device)
        for layer in self.layers:
            x_ISD = layer(x_ISD, angles, mask_SS)
        out: Tensor = self.norm(x_ISD[:, num_queries:])
        return out

    def _queries(self, side: int) -> Tensor:
        for view_px, table in zip(QUERY_VIEWS_PX, (self.query_768, self.query_1024), strict=True):
            if side * self.pixels_per_token == view_px:
                return table.weight
        sizes = " and ".join(map(str, QUERY_VIEWS_PX))
        raise UserError(f"DeepSeek-OCR-2 encodes views of {sizes} px only, got {side * self.pixels_per_token} px")


def query_mask(num_queries: int, device: torch.device) -> Tensor:
    """Return which tokens see which, bool [S, S]: True where the row's token sees the column's."""
    mask_SS = torch.ones(2 * num_queries, 2 * num_queries, dtype=torch.bool, device=device)
    mask_SS[:, num_queries:].tril_(-num_queries)
    return mask_SS
