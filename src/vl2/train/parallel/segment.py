"""One segment of a pipeline: its layers, taken out of a model with their names, and their forward pass.

The inputs and outputs depend on where the model is split: patches [I, p, C] inside the encoder, visual tokens [I, Q, D]
after the projector, and from the join on the sequence [1, S, D] with the accumulated balance loss [1]. The balance loss
is passed along so that its gradient reaches every layer. Nothing else is sent, because each rank has the packs.

I is the number of tiles to which all micro-batches of a step are padded, because communicated tensors must have equal
shapes. With tensor parallelism the encoder's inputs and outputs are those of this rank's part of the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from vl2.data.pack import Packed
from vl2.grid import UNTILED
from vl2.model import VL2
from vl2.model.language import DecoderLayer
from vl2.model.layers import RMSNorm
from vl2.model.layout import arrange_tiles, place_visual
from vl2.model.mask import AttentionMask
from vl2.model.moe import Balance, sequences_of_documents
from vl2.model.rope import rotary_angles
from vl2.model.vision import CarriedAttentionPool, PatchEmbed
from vl2.train.blank import with_no_effect
from vl2.train.loss import next_token_loss
from vl2.train.parallel import pipeline_split
from vl2.train.parallel.tensor_parallel import gather_tiles, own_tiles
from vl2.train.parallel.tile_balance import TileMoves
from vl2.train.ranks import Ranks

Boundary = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """One pack as a micro-batch of a pipeline."""

    pack: Packed
    moves: TileMoves | None  # the tiles that other data-parallel ranks encode; None without tile balancing
    num_tiles: int  # tiles to pad to; 0 if the batch has no tiles and skips the encoder
    loss_scale: float  # the factor of its summed loss
    balance_scale: float  # the factor of its balance loss


@dataclass(frozen=True, kw_only=True)
class PackLoss:
    """The losses of a pack, computed by the last segment."""

    pack: Packed
    loss_n: Tensor
    balance_loss: Tensor


class _Vision(nn.Module):
    """The encoder's modules of this segment; modules of other segments are missing attributes."""

    patch_embed: PatchEmbed
    pos_embed: nn.Parameter
    blocks: nn.ModuleDict
    norm: nn.LayerNorm
    attn_pool: CarriedAttentionPool | None


class _Decoder(nn.Module):
    """The decoder's modules of this segment."""

    embed_tokens: nn.Embedding
    layers: nn.ModuleDict
    norm: RMSNorm


class _Language(nn.Module):
    """The language model's modules of this segment."""

    model: _Decoder
    lm_head: nn.Linear


class SegmentModel(nn.Module):
    """Runs one segment on the micro-batches given to `begin`."""

    def __init__(self, model: VL2, segment: pipeline_split.Segment, data: Ranks, tensor: Ranks) -> None:
        """Take the segment's layers out of a model.

        `data` are the ranks with the same layers and other packs, `tensor` those with the same packs.
        """
        super().__init__()
        self.config, self._data, self._tensor = model.config, data, tensor
        kinds = {unit.kind for unit in segment}
        blocks = [unit.index for unit in segment if unit.kind == "block"]
        layers = [unit.index for unit in segment if unit.kind == "layer"]
        self.has_patches, self.has_projector = 0 in blocks, "projector" in kinds
        self.has_join, self.has_head = "join" in kinds, "head" in kinds
        self.vision = _Vision()
        if self.has_patches:
            self.vision.patch_embed = model.siglip.patch_embed
            self.vision.pos_embed = model.siglip.pos_embed
        if blocks:
            self.vision.blocks = nn.ModuleDict({str(i): model.siglip.blocks[i] for i in blocks})
        if self.has_projector:
            self.vision.norm = model.siglip.norm
            self.vision.attn_pool = model.siglip.attn_pool
            self.projector = model.projector
        self.language = _Language()
        decoder = self.language.model = _Decoder()
        if self.has_join:
            assert model.image_newline is not None, "DeepSeek-VL2 has newlines"
            self.image_newline, self.view_separator = model.image_newline, model.view_separator
            decoder.embed_tokens = model.language.model.embed_tokens
        if layers:
            decoder.layers = nn.ModuleDict({str(i): model.language.model.layers[i] for i in layers})
        if self.has_head:
            decoder.norm = model.language.model.norm
            self.language.lm_head = model.language.lm_head
        self._blocks = [model.siglip.blocks[i] for i in blocks]
        self._layers: list[tuple[int, DecoderLayer]] = [
            (i, cast("DecoderLayer", model.language.model.layers[i])) for i in layers
        ]
        self._rotary_dim = model.language.model.rotary_dim
        self._batches: Sequence[MicroBatch] = ()
        self.scored: list[PackLoss] = []
        self.loads: dict[int, Tensor] = {}  # by decoder layer, slots per expert

    def layers(self) -> list[tuple[int, DecoderLayer]]:
        """Return the decoder layers of this segment with their numbers."""
        return self._layers

    def begin(self, batches: Sequence[MicroBatch]) -> None:
        """Set the micro-batches of a pass. Losses and expert loads of earlier ones are kept until `forget`."""
        self._batches = batches

    def forget(self) -> None:
        self._batches, self.scored, self.loads = (), [], {}

    def forward(self, *inputs: Tensor, number: Tensor) -> Tensor | Boundary:
        """Run micro-batch `number`, [1], on the previous segment's outputs. The last segment returns the loss, [1]."""
        batch = self._batches[int(number)]
        x, balance = (*inputs, None)[:2] if inputs else (None, None)
        if self.has_patches:
            x = self._patches(batch)
        for block in self._blocks:
            x = block(x)
        if self.has_projector:
            assert x is not None
            x = self.projector(self.vision.norm(x))
        if self.has_join:
            x, balance = self._join(batch, x)
        assert x is not None
        if not self._layers and not self.has_head:
            return _sendable(x) if balance is None else (_sendable(x), balance)
        assert balance is not None
        x, balance = self._run_layers(batch.pack, x, balance)
        return self._loss(batch, x, balance) if self.has_head else (_sendable(x), balance)

    def _patches(self, batch: MicroBatch) -> Tensor:
        """Return the embedded patches of the tiles that this rank encodes, padded with blank tiles."""
        tiles_I3PP = batch.pack.tiles.to(self.vision.pos_embed.dtype)
        if batch.moves is not None and batch.moves.num_moved:
            sent = batch.moves.moved[self._data.rank]
            kept = len(tiles_I3PP) - sum(sent)
            received = [row[self._data.rank] for row in batch.moves.moved]
            arrived_I3PP = self._data.exchange(tiles_I3PP[kept:], sent, received)
            tiles_I3PP = torch.cat((tiles_I3PP[:kept], arrived_I3PP))
        missing = batch.num_tiles - len(tiles_I3PP)
        assert missing >= 0, f"{len(tiles_I3PP)} tiles in a batch of {batch.num_tiles}"
        tiles_I3PP = torch.cat((tiles_I3PP, tiles_I3PP.new_zeros(missing, *tiles_I3PP.shape[1:])))
        if self._tensor.size > 1:
            tiles_I3PP = own_tiles(tiles_I3PP, self._tensor)
        patches: Tensor = self.vision.patch_embed(tiles_I3PP) + self.vision.pos_embed
        return patches

    def _join(self, batch: MicroBatch, tokens_IQD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the embedded sequence with the visual tokens inserted, and a balance loss of zero."""
        pack = batch.pack
        embeds_1SD = self.language.model.embed_tokens(pack.input_ids.unsqueeze(0))
        if tokens_IQD is not None and self._tensor.size > 1:
            tokens_IQD = gather_tiles(tokens_IQD, batch.num_tiles, self._tensor)
        if tokens_IQD is not None:
            embeds_1SD = self._place(batch, tokens_IQD, embeds_1SD)
        # The zero is part of the sequence's graph, so that all packs send the same gradients.
        return embeds_1SD, 0.0 * embeds_1SD.flatten()[:1].float()

    def _place(self, batch: MicroBatch, tokens_IQD: Tensor, embeds_1SD: Tensor) -> Tensor:
        pack, own_IQD = batch.pack, tokens_IQD[: len(batch.pack.tiles)]
        if batch.moves is not None and batch.moves.num_moved:
            sent = batch.moves.moved[self._data.rank]
            kept = len(pack.tiles) - sum(sent)
            received = [row[self._data.rank] for row in batch.moves.moved]
            foreign_IQD = tokens_IQD[kept : kept + sum(received)]
            own_IQD = torch.cat((tokens_IQD[:kept], self._data.exchange(foreign_IQD, received, sent)))
        grids = [(columns, rows) for columns, rows in pack.grids.tolist()]
        if grids:
            visual_TD = arrange_tiles(own_IQD, grids, self.image_newline, self.view_separator)
            embeds_1SD = place_visual(embeds_1SD, pack.image_mask.unsqueeze(0), visual_TD)
        # Unused tiles are included without effect, because all encoders and exchanges must run backward on every rank.
        blank_TD = arrange_tiles(tokens_IQD[:1], [UNTILED], self.image_newline, self.view_separator)
        return embeds_1SD if grids else with_no_effect(with_no_effect(embeds_1SD, blank_TD), own_IQD)

    def _run_layers(self, pack: Packed, x_1SD: Tensor, balance: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config.language_config
        angles = rotary_angles(pack.position_ids.unsqueeze(0), self._rotary_dim, config.rope_theta, config.rope_scaling)
        mask = AttentionMask.of_documents(pack.cu_seqlens, pack.max_seqlen)
        kind: Balance = "sequence" if config.seq_aux else "batch"
        sequences_GT = sequences_of_documents(pack.cu_seqlens, len(pack), pack.num_tokens, kind)
        # Copy the balance loss even if no layer adds to it, because an output must not be an input tensor.
        balance = balance * 1.0
        for index, layer in self._layers:
            x_1SD, stats = layer(x_1SD, angles, mask, None, sequences_GT)
            if stats is not None:
                balance = balance + stats.balance_loss
                load_E = stats.expert_load
                self.loads[index] = load_E + self.loads[index] if index in self.loads else load_E
        return x_1SD, balance

    def _loss(self, batch: MicroBatch, x_1SD: Tensor, balance: Tensor) -> Tensor:
        states_1SD = self.language.model.norm(x_1SD)
        total, loss_n = next_token_loss(states_1SD[0], batch.pack.labels, self.language.lm_head.weight)
        self.scored.append(PackLoss(pack=batch.pack, loss_n=loss_n, balance_loss=balance.detach().squeeze(0)))
        return total * batch.loss_scale + balance * batch.balance_scale  # [1], as the balance loss is


def _sendable(x: Tensor) -> Tensor:
    """Return a contiguous copy. Sent tensors must be contiguous, and FSDP2's hooks need an output that is no view."""
    return x.clone(memory_format=torch.contiguous_format)
