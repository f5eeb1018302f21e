"""The SigLIP vision transformer. It maps tiles [I, 3, P, P] to patch features [I, patches, width].

The output is all patch tokens of the last block after the final norm, without a class token or pooling. Released files
also hold an attention pool that nothing reads. It is kept so that a loaded model can be saved completely.

Source: SigLIP-SO400M/14-384 as released (GELU in its tanh form, LayerNorm eps 1e-6).
Golden: vision_patch_embed, vision_block0 and vision_out in tests/golden/reference/model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vl2.config import VisionConfig

NORM_EPS = 1e-6


class PatchEmbed(nn.Module):
    """Cut a tile into patches and project each one. Pixels at the right and bottom that fill no patch are ignored."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, tiles_I3PP: Tensor) -> Tensor:
        patches: Tensor = self.proj(tiles_I3PP)
        # Contiguous in the order of the patches, because otherwise every norm that follows would copy the tensor.
        return patches.flatten(2).transpose(1, 2).contiguous()


class Attention(nn.Module):
    """Bidirectional multi-head attention over the patches of one tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


def attend(q_IHpC: Tensor, k_IHpC: Tensor, v_IHpC: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(C)) v over all patches of a tile."""
    dtype = q_IHpC.dtype
    if q_IHpC.device.type == "cpu" and torch.is_grad_enabled():
        # Forward and backward together, the CPU's kernel takes twice as long in bfloat16 as in float32.
        q_IHpC, k_IHpC, v_IHpC = q_IHpC.float(), k_IHpC.float(), v_IHpC.float()
    return F.scaled_dot_product_attention(q_IHpC, k_IHpC, v_IHpC).to(dtype)


class MLP(nn.Module):
    """Two linear layers with GELU in its tanh form between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class CarriedAttentionPool(nn.Module):
    """The weights of SigLIP's pooling head, which every released file has. They are neither used nor trained."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.latent = nn.Parameter(torch.zeros(1, 1, config.width))
        self.q = nn.Linear(config.width, config.width)
        self.kv = nn.Linear(config.width, 2 * config.width)
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)
        self.requires_grad_(False)


class VisionEncoder(nn.Module):
    """Encode tiles independently of one another."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches_per_side**2, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.attn_pool = CarriedAttentionPool(config) if config.global_pool == "map" else None

    def forward(self, tiles_I3PP: Tensor) -> Tensor:
        x = self.embed(tiles_I3PP)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def embed(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the patches that the first block reads, [I, patches, width]."""
        out: Tensor = self.patch_embed(tiles_I3PP.to(self.pos_embed.dtype)) + self.pos_embed
        return out
