"""The model: nn.Module classes and tensor functions only. Nothing here reads files, tokenizes, prints or uses ranks.

Names of tensors end in their shape: B batch, S sequence, L keys, T = B*S tokens, D model
width, H heads, C channels per head, R latent rank, E experts, K experts per token, N = T*K slots,
F hidden width, V vocabulary, I tiles, P tile side in pixels, Q visual tokens per tile.
"""

from vl2.model.cache import Cache, CacheRows
from vl2.model.init import init_weights
from vl2.model.vl2 import VL2, ModelOutput

__all__ = ["VL2", "Cache", "CacheRows", "ModelOutput", "init_weights"]
