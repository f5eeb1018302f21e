"""The second half of DeepEncoder: CLIP's vision transformer, which reads SAM's map instead of patches of pixels.

A class token comes before the other tokens; the caller drops it after the last block. No norm follows the last block.
The released files also hold a patch embedding that nothing reads. It is kept so that a loaded model can be saved
completely. The name `pre_layrnorm` is misspelled in the files.

Source: arXiv 2103.00020 (CLIP); released `deepencoder/clip_sdpa.py`. Golden: tests/golden/ocr.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.deep_encoder_config import ClipConfig
from vl2.model.sam import resize_positions

NORM_EPS = 1e-5


class CarriedPatchEmbedding(nn.Module):
    """The weights of CLIP's own patch embedding, which every released file has. They are neither used nor trained."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(config.width, 3, config.patch_size, config.patch_size))
        self.requires_grad_(False)


class Embeddings(nn.Module):
    """Put the class token before the map's tokens, and add the positions that were learned for CLIP's own patches."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.side = config.positions_per_side
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = CarriedPatchEmbedding(config)
        self.position_embedding = nn.Embedding(self.side**2 + 1, config.width)

    def forward(self, map_IDhw: Tensor) -> Tensor:
        class_token = self.class_embedding.expand(len(map_IDhw), 1, -1)
        tokens = torch.cat((class_token, map_IDhw.flatten(2).transpose(1, 2)), dim=1)
        own, of_map = self.position_embedding.weight.split((1, self.side**2))
        of_map = resize_positions(of_map.view(1, self.side, self.side, -1), map_IDhw.shape[-1]).flatten(0, 2)
        return tokens + torch.cat((own, of_map))


class Attention(nn.Module):
    """Bidirectional multi-head attention over the tokens of one view."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.num_heads = config.heads
        self.qkv_proj = nn.Linear(config.width, 3 * config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class MLP(nn.Module):
    """Two linear layers with CLIP's approximation of GELU between them, x * sigmoid(1.702 x)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.width * config.mlp_ratio)
        self.fc2 = nn.Linear(config.width * config.mlp_ratio, config.width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        out: Tensor = self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return out


class Layer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class Transformer(nn.Module):
    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class ClipEncoder(nn.Module):
    """Encode maps [I, width, h, w] as tokens [I, 1 + h * w, width], the class token first."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.transformer = Transformer(config)

    def forward(self, map_IDhw: Tensor) -> Tensor:
        out: Tensor = self.transformer(self.pre_layrnorm(self.embeddings(map_IDhw)))
        return out
