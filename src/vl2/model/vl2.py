"""The whole model: vision -> projector -> layout -> language.

Source: arXiv 2412.10302; released DeepseekVLV2ForCausalLM. Golden: tests/golden/reference/model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.batch import Batch
from vl2.config import ModelConfig
from vl2.grid import Grid
from vl2.model.attention import Reach
from vl2.model.language import LanguageModel
from vl2.model.layout import arrange_tiles, place_visual
from vl2.model.projector import Projector
from vl2.model.vision import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Logits of every position, and what the MoE layers report over unpadded tokens."""

    logits: Tensor  # float32 [B, S, V]
    balance_loss: Tensor  # float32 scalar, unweighted: the sum over the MoE layers
    expert_load: Tensor  # int64 [MoE layers, E], slots per expert


class VL2(nn.Module):
    """DeepSeek-VL2 of any size."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision_config)
        self.projector = Projector(config.projector_config)
        self.image_newline = nn.Parameter(torch.zeros(config.projector_config.n_embed))
        self.view_separator = nn.Parameter(torch.zeros(config.projector_config.n_embed))
        self.language = LanguageModel(config.language_config)

    @property
    def device(self) -> torch.device:
        return self.image_newline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.image_newline.dtype

    def encode_tiles(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the visual tokens of each tile, [I, Q, D]."""
        tokens: Tensor = self.projector(self.vision(tiles_I3PP))
        return tokens

    def arrange(self, tokens_IQD: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Return the visual tokens of all images with newlines and separators, [tokens, D]."""
        return arrange_tiles(tokens_IQD, grids, self.image_newline, self.view_separator)

    def embed(self, input_ids_BS: Tensor, image_mask_BS: Tensor, visual_TD: Tensor | None) -> Tensor:
        """Return the embedded prompt [B, S, D], visual tokens in their slots."""
        embeds_BSD = self.language.embed(input_ids_BS)
        return embeds_BSD if visual_TD is None else place_visual(embeds_BSD, image_mask_BS, visual_TD)

    def forward(self, batch: Batch) -> ModelOutput:
        """Run whole rows, padded on either side, with no cache."""
        grids: list[Grid] = [(columns, rows) for columns, rows in batch.grids.tolist()]
        visual_TD = self.arrange(self.encode_tiles(batch.tiles), grids) if grids else None
        embeds_BSD = self.embed(batch.input_ids, batch.image_mask, visual_TD)
        # Padding behind the tokens is out of causal reach; only padding before them must be masked.
        reach = Reach.of_rows(batch.attention_mask if batch.is_left_padded else None)
        positions_BS = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.language.model(
            embeds_BSD,
            positions_BS,
            reach,
            token_mask_BS=batch.attention_mask,
            balance="sequence" if self.config.language_config.seq_aux else "batch",
        )
        losses = [s.balance_loss for s in hidden.stats]
        loads = [s.expert_load for s in hidden.stats]
        return ModelOutput(
            logits=self.language.logits(hidden.states_BSD),
            balance_loss=torch.stack(losses).sum() if losses else embeds_BSD.new_zeros((), dtype=torch.float32),
            expert_load=torch.stack(loads) if loads else torch.zeros(0, 0, dtype=torch.int64),
        )
