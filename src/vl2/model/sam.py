"""The first half of DeepEncoder: SAM's vision transformer and two convolutions. Maps have 1/64 of a view's side.

The transformer has twelve blocks over patches of 16 px. Most attend within windows of 14 x 14 patches, four attend over
the whole view. The attention adds a bias to each score ("decomposed relative positions"): one term for the distance in
rows plus one for the distance in columns, each the product of the query with a learned vector. The neck reduces the
width to 256, and each convolution of stride 2 halves the sides. A view of 1024 px becomes 64 x 64 patches and then
16 x 16 tokens.

I views, h x w patches, H heads, C channels per head.

Source: arXiv 2304.02643 (SAM), 2112.01526 (relative positions); released `deepencoder/sam_vary_sdpa.py`.
Golden: tests/golden/ocr.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.deep_encoder_config import SamConfig

NORM_EPS = 1e-6
# Scores computed at once, over all heads and views: 16 MB of float32. The scores of a whole view would take 800 MB.
SCORES_AT_ONCE = 1 << 22


class MapNorm(nn.Module):
    """Layer norm over the channels of maps [I, channels, h, w]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        norm = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias, NORM_EPS)
        return norm.movedim(-1, 1)


class PatchEmbed(nn.Module):
    """Cut views into patches and project each, [I, h, w, width]."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, views_I3PP: Tensor) -> Tensor:
        patches: Tensor = self.proj(views_I3PP)
        return patches.permute(0, 2, 3, 1).contiguous()


class Attention(nn.Module):
    """Bidirectional attention over the patches of a square, with decomposed relative positions."""

    def __init__(self, config: SamConfig, side: int) -> None:
        """`side` is the side of the square that the positions are learned for."""
        super().__init__()
        self.num_heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, config.width // config.heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, config.width // config.heads))

    def forward(self, x_IhwD: Tensor) -> Tensor:
        num_squares, height, width, _ = x_IhwD.shape
        qkv = self.qkv(x_IhwD).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q_IHpC, k_IHpC, v_IHpC = qkv.permute(2, 0, 3, 1, 4)
        along_h_qkC = relative_positions(self.rel_pos_h, height)
        along_w_qkC = relative_positions(self.rel_pos_w, width)
        # Run some rows of queries at a time, because the biases of all queries together would fill the memory.
        scores_per_row = num_squares * self.num_heads * width * height * width
        rows_at_once = max(1, SCORES_AT_ONCE // scores_per_row)
        q_IHhwC = q_IHpC.unflatten(2, (height, width))
        parts = []
        for first in range(0, height, rows_at_once):
            rows_IHywC = q_IHhwC[:, :, first : first + rows_at_once]
            bias = position_bias(rows_IHywC, along_h_qkC[first : first + rows_at_once], along_w_qkC)
            parts.append(F.scaled_dot_product_attention(rows_IHywC.flatten(2, 3), k_IHpC, v_IHpC, attn_mask=bias))
        out_IpD = torch.cat(parts, dim=2).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(out_IpD.unflatten(1, (height, width)))
        return out


def position_bias(q_IHywC: Tensor, along_h_ykC: Tensor, along_w_wkC: Tensor) -> Tensor:
    """Return the bias of the scores, [I, H, queries, keys]: a term for the row distance plus one for the columns."""
    by_row = torch.einsum("ihywc,ykc->ihywk", q_IHywC, along_h_ykC)
    by_column = torch.einsum("ihywc,wkc->ihywk", q_IHywC, along_w_wkC)
    return (by_row.unsqueeze(-1) + by_column.unsqueeze(-2)).flatten(4, 5).flatten(2, 3)


def relative_positions(table_LC: Tensor, side: int) -> Tensor:
    """Return the learned vector of each query and key along one side, [side, side, C]."""
    place = torch.arange(side, device=table_LC.device)
    return resize_distances(table_LC, side)[place[:, None] - place[None, :] + side - 1]


def resize_distances(table_LC: Tensor, side: int) -> Tensor:
    """Return the learned vectors of the distances 1 - side to side - 1, [2 * side - 1, C].

    A table that was learned for another side is interpolated in float32.
    """
    if len(table_LC) == 2 * side - 1:
        return table_LC
    stretched = F.interpolate(table_LC.float().t().unsqueeze(0), size=2 * side - 1, mode="linear")
    return stretched[0].t().to(table_LC.dtype)


class MLP(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.lin1 = nn.Linear(config.width, config.width * config.mlp_ratio)
        self.lin2 = nn.Linear(config.width * config.mlp_ratio, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lin2(F.gelu(self.lin1(x)))
        return out


class Block(nn.Module):
    """Pre-norm transformer block over the whole view, or over windows of it."""

    def __init__(self, config: SamConfig, *, is_global: bool) -> None:
        super().__init__()
        self.window_size = None if is_global else config.window_size
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config, config.positions_per_side if is_global else config.window_size)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x_IhwD: Tensor) -> Tensor:
        normed = self.norm1(x_IhwD)
        if self.window_size is None:
            attended = self.attn(normed)
        else:
            _, height, width, _ = normed.shape
            windows = cut_windows(normed, self.window_size)
            attended = join_windows(self.attn(windows), self.window_size, height, width)
        x_IhwD = x_IhwD + attended
        out: Tensor = x_IhwD + self.mlp(self.norm2(x_IhwD))
        return out


def cut_windows(x_IhwD: Tensor, window: int) -> Tensor:
    """Cut maps into windows, [windows, window, window, D], with zeros beyond the right and bottom edges.

    These zeros take part in the attention of their window, as in the released model.
    """
    _, height, width, _ = x_IhwD.shape
    x = F.pad(x_IhwD, (0, 0, 0, -width % window, 0, -height % window))
    x = x.unflatten(2, (-1, window)).unflatten(1, (-1, window))  # [I, rows, window, columns, window, D]
    windows: Tensor = x.transpose(2, 3).flatten(0, 2)
    return windows


def join_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo `cut_windows`, [I, height, width, D]."""
    rows, columns = -(-height // window), -(-width // window)
    x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
    joined: Tensor = x.flatten(3, 4).flatten(1, 2)
    return joined[:, :height, :width]


class SamEncoder(nn.Module):
    """Map views [I, 3, P, P] to feature maps [I, channels, P / 64, P / 64]."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        side = config.positions_per_side
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, config.width))
        self.blocks = nn.ModuleList(
            Block(config, is_global=index in config.global_attn_indexes) for index in range(config.layers)
        )
        first, second = config.downsample_channels
        self.neck = nn.Sequential(
            nn.Conv2d(config.width, config.neck_channels, kernel_size=1, bias=False),
            MapNorm(config.neck_channels),
            nn.Conv2d(config.neck_channels, config.neck_channels, kernel_size=3, padding=1, bias=False),
            MapNorm(config.neck_channels),
        )
        self.net_2 = nn.Conv2d(config.neck_channels, first, kernel_size=3, stride=2, padding=1, bias=False)
        self.net_3 = nn.Conv2d(first, second, kernel_size=3, stride=2, padding=1, bias=False)

    def forward(self, views_I3PP: Tensor) -> Tensor:
        x_IhwD = self.patch_embed(views_I3PP.to(self.pos_embed.dtype))
        x_IhwD = x_IhwD + resize_positions(self.pos_embed, x_IhwD.shape[1])
        for block in self.blocks:
            x_IhwD = block(x_IhwD)
        out: Tensor = self.net_3(self.net_2(self.neck(x_IhwD.permute(0, 3, 1, 2))))
        return out


def resize_positions(positions_1hwD: Tensor, side: int) -> Tensor:
    """Return learned positions resized to another side: bicubic with antialiasing, computed in float32."""
    if positions_1hwD.shape[1] == side:
        return positions_1hwD
    maps = positions_1hwD.permute(0, 3, 1, 2).float()
    resized = F.interpolate(maps, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.to(positions_1hwD.dtype).permute(0, 2, 3, 1)
