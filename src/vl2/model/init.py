"""Initial weights for training from scratch: the released initializers, and fan-in scaling in the encoder.

The encoder's positions start as waves along both sides, as large as the patches that they place. From small random
ones it takes thousands of steps until a patch finds its neighbors, and until then nothing that lies over two patches
is recognized. Source: arXiv 2205.01580, section 3.

The language model draws from a normal distribution with the configured `initializer_range`, the newline
and separator vectors with deviation 1 / sqrt(D), as released. The paper starts the encoder from SigLIP's
weights and says nothing of random ones, so there the choice is ours.
"""

import torch
from torch import nn

from vl2.model.clip import Embeddings
from vl2.model.layers import RMSNorm
from vl2.model.moe import Experts, Router
from vl2.model.sam import Attention, MapNorm, SamEncoder
from vl2.model.vision import VisionEncoder
from vl2.model.vl2 import VL2


@torch.no_grad()
def init_weights(model: VL2, seed: int) -> None:
    """Fill every weight from one generator. In place; the same seed gives the same weights on every machine."""
    generator = torch.Generator().manual_seed(seed)
    std = model.config.language_config.initializer_range

    def draw(tensor: torch.Tensor, deviation: float) -> None:
        tensor.copy_(torch.empty(tensor.shape).normal_(0.0, deviation, generator=generator))

    for name, module in model.named_modules():
        in_encoder = name.startswith(("vision", "projector"))
        if isinstance(module, nn.Linear | nn.Conv2d):
            draw(module.weight, module.weight[0].numel() ** -0.5 if in_encoder else std)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding | Router):
            draw(module.weight, std)
        elif isinstance(module, Experts):
            draw(module.gate_up_proj, std)
            draw(module.down_proj, std)
        elif isinstance(module, nn.LayerNorm | MapNorm | RMSNorm):
            module.weight.fill_(1.0)
            if not isinstance(module, RMSNorm):
                module.bias.zero_()
        elif isinstance(module, VisionEncoder):
            side = model.config.siglip.patches_per_side
            module.pos_embed.copy_(wave_positions(side, module.pos_embed.shape[-1]).unsqueeze(0))
            if module.attn_pool is not None:
                draw(module.attn_pool.latent, std)
        elif isinstance(module, SamEncoder):
            side = module.pos_embed.shape[1]
            module.pos_embed.copy_(wave_positions(side, module.pos_embed.shape[-1]).view_as(module.pos_embed))
        elif isinstance(module, Attention):
            draw(module.rel_pos_h, std)
            draw(module.rel_pos_w, std)
        elif isinstance(module, Embeddings):
            draw(module.class_embedding, std)
            draw(module.patch_embedding.weight, std)
    width = model.config.projector_config.n_embed
    draw(model.image_newline, width**-0.5)
    draw(model.view_separator, width**-0.5)


def wave_positions(side: int, width: int) -> torch.Tensor:
    """Return the positions of `side` x `side` patches, row by row, [side^2, width]: sines and cosines of the column in
    the first half, of the row in the second. Wavelengths go from one patch times 2 pi to 10,000 times that."""
    half = width // 2
    frequencies = 10_000.0 ** -(torch.arange(half // 2) / (half // 2))
    angles = torch.arange(side).float()[:, None] * frequencies
    waves = torch.zeros(side, half)
    waves[:, : half // 2], waves[:, half // 2 : 2 * (half // 2)] = angles.sin(), angles.cos()
    positions = torch.zeros(side, side, width)
    positions[..., :half], positions[..., half : 2 * half] = waves[None], waves[:, None]
    return positions.flatten(0, 1)
