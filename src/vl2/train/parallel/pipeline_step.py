"""One optimizer step of a pipeline, whose micro-batches are the packs of the step.

Packs with images and text-only packs run in separate passes: packs with images pass all segments, text-only packs pass
the segments of the language model if the split allows. Data-parallel ranks run equally many micro-batches, because they
share weights and experts; a rank with fewer packs runs blank ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vl2.data.pack import Packed
from vl2.data.pack_plan import tile_bucket
from vl2.model.moe import update_expert_bias
from vl2.train.blank import blank_pack
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.schedules import MicroBatchShape
from vl2.train.parallel.segment import MicroBatch
from vl2.train.parallel.tile_balance import TileMoves, even_counts, imbalance, plan_moves
from vl2.train.shard import reshard
from vl2.train.stage import Stage
from vl2.train.step import StepCounts, StepReport, StepTally, TrainStep


class PipelineStep(TrainStep):
    """A training step for the segments on this rank, together with the ranks that hold the others."""

    def __init__(self, model: PipelineModel, stage: Stage, *, balances_tiles: bool, seed: int = 0) -> None:
        """Prepare training; `balances_tiles` balances tiles over the ranks that hold the encoder's first layers."""
        self.pipeline = model
        self._balances_tiles = balances_tiles
        layout = model.layout
        super().__init__(model, stage, layout.world, seed=seed, data=layout.data, tensor=layout.tensor)

    def apply(self, report: StepReport, learning_rate: float) -> None:
        self._apply_gradients(report, learning_rate)
        if self.stage.expert_bias_step:
            for row, router in self.pipeline.held_routers().items():
                update_expert_bias(router, report.expert_load[row], self.stage.expert_bias_step)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state, which may contain weights of other ranks as well."""
        own = {name for name, _ in self.optimizer.masters()} | {"num_steps"}
        super().load_state_dict({name: values for name, values in state.items() if name in own})

    def _run_all(self, own: list[Packed], counts: StepCounts, tally: StepTally) -> None:
        own = [pack.to(self.ranks.device) for pack in own]
        with_images = [pack for pack in own if len(pack.tiles)]
        text = [pack for pack in own if not len(pack.tiles)]
        for packs, is_text in ((with_images, False), (text, True)):
            self._run_kind(packs, counts, tally, is_text=is_text)

    def _run_kind(self, packs: list[Packed], counts: StepCounts, tally: StepTally, *, is_text: bool) -> None:
        model = self.pipeline
        size, longest = self._max_over_ranks(len(packs), max((len(pack) for pack in packs), default=0))
        if not size:
            return
        # PyTorch's schedules require a multiple of the number of stages.
        size = -(-size // model.split.num_ranks) * model.split.num_ranks
        blank = blank_pack(model.config).to(self.ranks.device)
        packs = [pack.with_length(longest) for pack in packs]
        packs += [blank.with_length(longest)] * (size - len(packs))
        moves = self._moves(packs, is_text=is_text)
        most = max(self._most_tiles(packs, moves), 1)
        num_tiles = 0 if is_text and model.split.is_looped else 1 if is_text else tile_bucket(most)
        num_tiles = -(-num_tiles // self._tensor.size) * self._tensor.size
        batches = [self._micro_batch(pack, move, num_tiles, counts) for pack, move in zip(packs, moves, strict=True)]
        for segment in model.segments.values():
            segment.begin(batches)
        carries = model.carries_text_gradient if is_text else model.carries_gradient
        is_trained = any(carries)
        shape = MicroBatchShape(num_batches=size, num_tiles=num_tiles, num_tokens=longest, is_trained=is_trained)
        model.pipelines.run(shape, carries)
        reshard(model)
        self._collect(tally)

    def _count_tiles(self, packs: Sequence[Packed]) -> tuple[tuple[int, ...], ...]:
        return super()._count_tiles([pack for pack in packs if len(pack.tiles)])

    def _balanced_imbalance(self, counts: StepCounts) -> float:
        if not self._balances_tiles:
            return imbalance(counts.tiles_by_rank)
        return imbalance([even_counts(held) for held in counts.tiles_by_rank])

    def _max_over_ranks(self, count: int, length: int) -> tuple[int, int]:
        """Return the maximum of both values over the data-parallel ranks."""
        most = torch.tensor([count, length], device=self.ranks.device)
        count, length = self.data_ranks.max_(most).tolist()
        return count, length

    def _moves(self, packs: Sequence[Packed], *, is_text: bool) -> list[TileMoves | None]:
        """Return for each micro-batch the tiles that move between the ranks that encode at the same time."""
        data = self.data_ranks
        if not self._balances_tiles or is_text or data.size == 1:
            return [None] * len(packs)
        held = torch.zeros(len(packs), data.size, dtype=torch.int64, device=self.ranks.device)
        held[:, data.rank] = torch.tensor([len(pack.tiles) for pack in packs], device=self.ranks.device)
        return [plan_moves(row) for row in data.sum_(held).tolist()]

    def _most_tiles(self, packs: Sequence[Packed], moves: Sequence[TileMoves | None]) -> int:
        rank = self.data_ranks.rank
        return max(
            len(pack.tiles) if move is None else max(len(pack.tiles), move.encoded[rank])
            for pack, move in zip(packs, moves, strict=True)
        )

    def _micro_batch(self, pack: Packed, moves: TileMoves | None, num_tiles: int, counts: StepCounts) -> MicroBatch:
        num_balanced = self._num_balanced(pack) if pack.num_tokens else 0
        return MicroBatch(
            pack=self._own_positions(pack),
            moves=moves,
            num_tiles=num_tiles,
            loss_scale=1 / max(counts.trained_tokens, 1),
            balance_scale=self.stage.balance_loss_weight * num_balanced / max(counts.balanced, 1) / self._tensor.size,
        )

    def _collect(self, tally: StepTally) -> None:
        """Add the losses and expert loads of this rank's segments to the tally."""
        model = self.pipeline
        for segment in model.segments.values():
            for scored in segment.scored:
                is_counted = scored.pack.num_tokens and self._tensor.is_first
                num_balanced = self._num_balanced(scored.pack) if is_counted else 0
                tally.add_loss(scored.pack, scored.loss_n, scored.balance_loss, num_balanced)
            for index, load_E in segment.loads.items() if self._tensor.is_first else ():
                tally.expert_load[model.moe_layers.index(index)] += load_E
            segment.forget()
