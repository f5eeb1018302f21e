"""Initial weights for training from scratch: the released initialisers, and fan-in scaling in the encoder.

The language model draws from a normal distribution with the configured `initializer_range`, the newline
and separator vectors with deviation 1 / sqrt(D), as released. The paper starts the encoder from SigLIP's
weights and says nothing of random ones, so there the choice is ours.
"""

import torch
from torch import nn

from vl2.model.layers import RMSNorm
from vl2.model.moe import Experts, Router
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
        elif isinstance(module, nn.LayerNorm | RMSNorm):
            module.weight.fill_(1.0)
            if isinstance(module, nn.LayerNorm):
                module.bias.zero_()
        elif isinstance(module, VisionEncoder):
            draw(module.pos_embed, std)
            if module.attn_pool is not None:
                draw(module.attn_pool.latent, std)
    width = model.config.projector_config.n_embed
    draw(model.image_newline, width**-0.5)
    draw(model.view_separator, width**-0.5)
