"""The DeepSeekMoE language model: embeddings in, hidden states and logits out.

Source: arXiv 2405.04434; released DeepseekV2ForCausalLM. Golden: hidden_* and logits in tests/golden/reference/model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.config import LanguageConfig
from vl2.model.attention import AnyCache, AttentionMask, LatentAttention, MultiHeadAttention
from vl2.model.cache import CacheRows
from vl2.model.layers import GatedMLP, RMSNorm
from vl2.model.moe import MoE, RoutingStats
from vl2.model.rope import Angles, rotary_angles


@dataclass(frozen=True, kw_only=True)
class Hidden:
    """What the decoder returns: states after the final norm, and routing statistics where they were asked for."""

    states_BSD: Tensor
    stats: list[RoutingStats]  # one per MoE layer, empty unless it was said whose balance is kept

    @property
    def balance_loss(self) -> Tensor:
        """The unweighted sum over the MoE layers, float32 scalar."""
        if not self.stats:
            return self.states_BSD.new_zeros((), dtype=torch.float32)
        return torch.stack([stats.balance_loss for stats in self.stats]).sum()

    @property
    def expert_load(self) -> Tensor:
        """Slots per expert, int64 [MoE layers, E]."""
        if not self.stats:
            return torch.zeros(0, 0, dtype=torch.int64, device=self.states_BSD.device)
        return torch.stack([stats.expert_load for stats in self.stats])


class DecoderLayer(nn.Module):
    """Attention and MLP or MoE, each on a normed copy and added back."""

    def __init__(self, config: LanguageConfig, index: int) -> None:
        super().__init__()
        self.index = index
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
        cache: AnyCache | None,
        sequences_GT: Tensor | None,
        last_only: bool = False,
    ) -> tuple[Tensor, RoutingStats | None]:
        x_BSD = self.self_attn(self.input_layernorm(x_BSD), angles, mask, cache, self.index, x_BSD, last_only)
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MoE):
            out: tuple[Tensor, RoutingStats | None] = self.mlp(normed_BSD, sequences_GT, x_BSD)
            return out
        return x_BSD + self.mlp(normed_BSD), None


class Decoder(nn.Module):
    """Token table, layers and final norm."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_dim = (
            config.qk_rope_head_dim if config.use_mla else config.hidden_size // config.num_attention_heads
        )

    def forward(
        self,
        x_BSD: Tensor,
        positions_BS: Tensor,
        mask: AttentionMask,
        cache: AnyCache | None = None,
        sequences_GT: Tensor | None = None,
        *,
        last_only: bool = False,
    ) -> Hidden:
        """Return the states of all positions, or of the last: then the last layer computes only keys and values for
        the earlier ones."""
        angles = rotary_angles(positions_BS, self.rotary_dim, self.config.rope_theta)
        collected = []
        for layer in self.layers:
            is_end = last_only and layer is self.layers[-1]
            x_BSD, stats = layer(x_BSD, angles, mask, cache, sequences_GT, is_end)
            if stats is not None:
                collected.append(stats)
        return Hidden(states_BSD=self.norm(x_BSD), stats=collected)


class LanguageModel(nn.Module):
    """Decoder and output head."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head_logits, self.fused_prefill = lm_head_logits, fused_prefill  # kernels may take their places

    def embed(self, input_ids_BS: Tensor) -> Tensor:
        embeds_BSD: Tensor = self.model.embed_tokens(input_ids_BS)
        return embeds_BSD

    def logits(self, states_BSD: Tensor) -> Tensor:
        """Return float32 logits [..., V]. Select positions first: 4,096 x 129,280 of them are 2 GB."""
        return self.lm_head_logits(self.lm_head, states_BSD)

    def extend(self, embeds_BSD: Tensor, cache: AnyCache, *, last_only: bool = False) -> Tensor:
        """Append S positions to every row of the cache; return their states [B, S, D], or the last ones [B, 1, D]."""
        num_new, device = embeds_BSD.shape[1], embeds_BSD.device
        states_B1D = self.fused_prefill(self, embeds_BSD, cache) if last_only else None
        if states_B1D is not None:
            cache.advance(num_new)
            return states_B1D
        starts_B1 = torch.tensor(cache.lengths, device=device).unsqueeze(1)
        positions_BS = starts_B1 + torch.arange(num_new, device=device)
        if isinstance(cache, CacheRows):
            assert num_new == 1, f"rows of several caches take one position at a time, not {num_new}"
            mask = AttentionMask(tensor=None, is_causal=False)
        else:
            mask = AttentionMask.of_cache(cache.lengths, num_new, device)
        hidden: Hidden = self.model(embeds_BSD, positions_BS, mask, cache, last_only=last_only)
        cache.advance(num_new)
        return hidden.states_BSD


def fused_prefill(language: LanguageModel, embeds_BSD: Tensor, cache: AnyCache) -> Tensor | None:
    """Append S positions to the cache in one call of the kernels, and return the states of the last, [B, 1, D].

    Returns None where no kernels are put in, as here. The lengths of the cache do not move.
    """
    return None


def lm_head_logits(head: nn.Module, states: Tensor) -> Tensor:
    """Return the float32 logits of states [..., D], [..., V]."""
    logits: Tensor = head(states)
    return logits.float()
