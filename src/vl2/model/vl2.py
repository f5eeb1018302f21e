"""The whole model: vision -> projector -> layout -> language.

DeepSeek-VL2 and the DeepSeek-OCR family differ in the encoder, the projector and the order of an image's tokens, which
`config.json` determines. Their language model is the same.

Source: arXiv 2412.10302; released DeepseekVLV2ForCausalLM and DeepseekOCRForCausalLM. Goldens:
tests/golden/reference/model, tests/golden/ocr.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vl2.batch import Batch, PackedTensors
from vl2.config import ModelConfig
from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.grid import Grid, ImageLayout
from vl2.model.deep_encoder import DeepEncoder, DeepEncoder2, build_deep_encoder
from vl2.model.language import Hidden, LanguageModel
from vl2.model.layout import arrange_views, join_views, place_visual, side_of
from vl2.model.mask import AnswerWindow, AttentionMask
from vl2.model.moe import Balance, sequences_of_documents, sequences_of_rows
from vl2.model.projector import LinearProjector, Projector
from vl2.model.vision import VisionEncoder


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """Logits of every position, and the statistics of the MoE layers over all tokens except padding."""

    logits: Tensor  # float32 [B, S, V]
    balance_loss: Tensor  # float32 scalar, unweighted: the sum over the MoE layers
    expert_load: Tensor  # int64 [MoE layers, E], slots per expert


class VL2(nn.Module):
    """DeepSeek-VL2 of any size, or a model of the DeepSeek-OCR family."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.vision: VisionEncoder | DeepEncoder | DeepEncoder2
        self.projector: Projector | LinearProjector
        if isinstance(config.vision_config, DeepEncoderConfig):
            self.vision = build_deep_encoder(config.vision_config)
            self.projector = LinearProjector(config.projector_config)
        else:
            self.vision = VisionEncoder(config.vision_config)
            self.projector = Projector(config.projector_config)
        # DeepSeek-OCR-2 writes no newlines, and its files have none.
        has_newlines = config.kind != "DeepSeek-OCR-2"
        self.image_newline = nn.Parameter(torch.zeros(config.projector_config.n_embed)) if has_newlines else None
        self.view_separator = nn.Parameter(torch.zeros(config.projector_config.n_embed))
        self.language = LanguageModel(config.language_config)

    @property
    def siglip(self) -> VisionEncoder:
        """The encoder of DeepSeek-VL2, for code that supports no other. `config.siglip` raises UserError for others."""
        assert isinstance(self.vision, VisionEncoder), f"the encoder is a {type(self.vision).__name__}"
        return self.vision

    @property
    def encoder_blocks(self) -> list[nn.Module]:
        """The transformer blocks of the image encoder, in the order in which they run."""
        return list(self.vision.blocks)

    @property
    def device(self) -> torch.device:
        return self.view_separator.device

    @property
    def dtype(self) -> torch.dtype:
        return self.view_separator.dtype

    def encode_tiles(self, tiles_I3PP: Tensor) -> Tensor:
        """Return the visual tokens of each tile, or of each overview, [I, Q, D]."""
        return self._encode_tiles(tiles_I3PP)

    def _encode_tiles(self, tiles_I3PP: Tensor) -> Tensor:
        # Other methods call this one: FSDP may wrap the public one as a forward method, and these must not be nested.
        tokens: Tensor = self.projector(self.vision(tiles_I3PP))
        return tokens

    def arrange(self, tokens_IQD: Tensor, grids: Sequence[Grid], overviews_JQD: Tensor | None = None) -> Tensor:
        """Return the visual tokens of all images with newlines and separators, [tokens, D].

        `overviews_JQD` holds the tokens of overviews if these are encoded separately from the tiles.
        """
        tile_side = side_of(tokens_IQD)
        layout = self.config.layout(tile_side if overviews_JQD is None else side_of(overviews_JQD), tile_side)
        views_TD = (
            tokens_IQD.flatten(0, 1) if overviews_JQD is None else join_views(tokens_IQD, overviews_JQD, grids, layout)
        )
        return arrange_views(views_TD, grids, layout, self.image_newline, self.view_separator)

    def arrange_image(self, views_TD: Tensor, grid: Grid, layout: ImageLayout) -> Tensor:
        """Return the visual tokens of one image, [tokens, D], from the tokens of its views, overview first."""
        return arrange_views(views_TD, [grid], layout, self.image_newline, self.view_separator)

    def embed(self, input_ids_BS: Tensor, image_mask_BS: Tensor, visual_TD: Tensor | None) -> Tensor:
        """Return the embedded prompt [B, S, D] with the visual tokens in their slots."""
        embeds_BSD = self.language.embed(input_ids_BS)
        return embeds_BSD if visual_TD is None else place_visual(embeds_BSD, image_mask_BS, visual_TD)

    def forward(self, batch: Batch) -> ModelOutput:
        """Run whole rows without a cache. Rows may be padded on either side.

        Unlimited-OCR takes all tokens of a row for the prompt; `states` has its window over answers.
        """
        embeds_BSD = self.embed(batch.input_ids, batch.image_mask, self._encode(batch))
        # A causal mask already hides padding after the tokens. Only padding before them must be masked.
        mask = AttentionMask.of_rows(batch.attention_mask if batch.is_left_padded else None)
        positions_BS = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        sequences_GT = sequences_of_rows(batch.attention_mask, self._balance)
        hidden: Hidden = self.language.model(embeds_BSD, positions_BS, mask, sequences_GT=sequences_GT)
        return ModelOutput(
            logits=self.language.logits(hidden.states_BSD),
            balance_loss=hidden.balance_loss,
            expert_load=hidden.expert_load,
        )

    def states(self, packed: PackedTensors, *, tokens_IQD: Tensor | None = None) -> Hidden:
        """Run each document of a packed sequence as if it were alone. Return states [1, S, D] after the final norm.

        `tokens_IQD` holds the visual tokens of its tiles if they have been encoded already.
        """
        return self.packed_states(packed, self.embed_packed(packed, tokens_IQD))

    def embed_packed(self, packed: PackedTensors, tokens_IQD: Tensor | None = None) -> Tensor:
        """Return the embedded documents of a packed sequence, [1, S, D]."""
        if tokens_IQD is None:
            visual_TD = self._encode(packed)
        else:
            visual_TD = self.arrange(tokens_IQD, [(columns, rows) for columns, rows in packed.grids.tolist()])
        return self.embed(packed.input_ids.unsqueeze(0), packed.image_mask.unsqueeze(0), visual_TD)

    def packed_states(self, packed: PackedTensors, embeds_1SD: Tensor) -> Hidden:
        """Run the embedded documents of a packed sequence, each as if it were alone."""
        num_positions, size = len(packed.input_ids), self.config.answer_window
        window = None if size is None else AnswerWindow(size=size, prompt_lengths=packed.prompt_lengths)
        hidden: Hidden = self.language.model(
            embeds_1SD,
            packed.position_ids.unsqueeze(0),
            AttentionMask.of_documents(packed.cu_seqlens, packed.max_seqlen, window),
            sequences_GT=sequences_of_documents(packed.cu_seqlens, num_positions, packed.num_tokens, self._balance),
        )
        return hidden

    def _encode(self, batch: Batch | PackedTensors) -> Tensor | None:
        """Return the visual tokens of all images in order, [tokens, D], or None without images."""
        if not len(batch.grids):
            return None
        grids = [(columns, rows) for columns, rows in batch.grids.tolist()]
        overviews = None if batch.overviews is None else self._encode_tiles(batch.overviews)
        if overviews is not None and not len(batch.tiles):
            return self.arrange(overviews[:0], grids, overviews)
        return self.arrange(self._encode_tiles(batch.tiles), grids, overviews)

    @property
    def _balance(self) -> Balance:
        return "sequence" if self.config.language_config.seq_aux else "batch"
