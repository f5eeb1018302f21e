"""The DeepSeekMoE language model. It maps embeddings to hidden states and logits.

Source: arXiv 2405.04434; released DeepseekV2ForCausalLM. Golden: hidden_* and logits in tests/golden/reference/model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.model.attention import LatentAttention, MultiHeadAttention
from vl2.model.cache import AnyCache, CacheLayer
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.mask import AttentionMask
from vl2.model.moe import MoE, RoutingStats
from vl2.model.rope import Angles, rotary_angles


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """The decoder's output: states after the final norm, and routing statistics if they were requested."""

    states_BSD: Tensor
    stats: list[RoutingStats]  # one per MoE layer; empty if no `sequences_GT` was given

    @property
    def balance_loss(self) -> Tensor:
        """The sum of the balance losses of the MoE layers, unweighted, as a float32 scalar."""
        if not self.stats:
            return self.states_BSD.new_zeros((), dtype=torch.float32)
        return torch.stack([stats.balance_loss for stats in self.stats]).sum()

    @property
    def expert_load(self) -> Tensor:
        """The number of slots that went to each expert, int64 [MoE layers, E]."""
        if not self.stats:
            return torch.zeros(0, 0, dtype=torch.int64, device=self.states_BSD.device)
        return torch.stack([stats.expert_load for stats in self.stats])


class DecoderLayer(nn.Module):
    """Attention, then an MLP or MoE. Each reads the normed states and adds its output to the residual."""

    def __init__(self, config: LanguageConfig, index: int) -> None:
        super().__init__()
        self.self_attn = LatentAttention(config) if config.use_mla else MultiHeadAttention(config)
        is_moe = config.is_moe_layer(index)
        self.mlp = MoE(config) if is_moe else GatedMLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BSD: Tensor,
        angles: Angles,
        mask: AttentionMask,
        cache: CacheLayer | None = None,
        sequences_GT: Tensor | None = None,
        *,
        last_only: bool = False,
        equal_blocks: bool = False,
    ) -> tuple[Tensor, RoutingStats | None]:
        """Return the states [B, S, D], or with `last_only` [B, 1, D], and the routing statistics.

        The statistics are None for a dense layer, and if `sequences_GT` is not given.
        """
        attended_BSD = self.self_attn(self.input_layernorm(x_BSD), angles, mask, cache, last_only=last_only)
        x_BSD = (x_BSD[:, -1:] if last_only else x_BSD) + attended_BSD
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if not isinstance(self.mlp, MoE):
            return x_BSD + self.mlp(normed_BSD), None
        mixed_BSD, stats = self.mlp(normed_BSD, sequences_GT, equal_blocks=equal_blocks)
        return x_BSD + mixed_BSD, stats


class Decoder(nn.Module):
    """Token embeddings, decoder layers and final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_dim = config.rotary_dim

    def forward(
        self,
        x_BSD: Tensor,
        positions_BS: Tensor,
        mask: AttentionMask,
        cache: AnyCache | None = None,
        sequences_GT: Tensor | None = None,
        *,
        last_only: bool = False,
        equal_blocks: bool = False,
    ) -> Hidden:
        """Return the states of all positions, or with `last_only` of the last position.

        With `last_only` the last layer computes only keys and values for earlier positions. `equal_blocks` is for rows
        that must not change each other's rounding, see `vl2.model.moe.block_rows`.
        """
        angles = rotary_angles(positions_BS, self.rotary_dim, self.config.rope_theta, self.config.rope_scaling)
        collected = []
        for index, layer in enumerate(self.layers):
            held = None if cache is None else CacheLayer(cache, index)
            is_end = last_only and index == len(self.layers) - 1
            x_BSD, stats = layer(x_BSD, angles, mask, held, sequences_GT, last_only=is_end, equal_blocks=equal_blocks)
            if stats is not None:
                collected.append(stats)
        return Hidden(states_BSD=self.norm(x_BSD), stats=collected)


class LanguageModel(nn.Module):
    """Decoder and output head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, input_ids_BS: Tensor) -> Tensor:
        embeds_BSD: Tensor = self.model.embed_tokens(input_ids_BS)
        return embeds_BSD

    def logits(self, states_BSD: Tensor) -> Tensor:
        """Return float32 logits [..., V]. Select positions first: 4,096 x 129,280 logits take 2 GB."""
        logits: Tensor = self.lm_head(states_BSD)
        return logits.float()

    def extend(self, embeds_BSD: Tensor, cache: AnyCache, *, last_only: bool = False) -> Tensor:
        """Append S positions to every row of the cache; return their states [B, S, D], or the last ones [B, 1, D].

        When every row gets one position, the rows belong to different requests, so `equal_blocks` is set: the result
        of a request then does not depend on the other requests.
        """
        num_new, device = embeds_BSD.shape[1], embeds_BSD.device
        starts_B1 = torch.tensor(cache.positions, device=device).unsqueeze(1)
        hidden: Hidden = self.model(
            embeds_BSD,
            starts_B1 + torch.arange(num_new, device=device),
            cache.mask(num_new),
            cache,
            last_only=last_only,
            equal_blocks=num_new == 1,
        )
        cache.advance(num_new)
        return hidden.states_BSD
