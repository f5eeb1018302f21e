"""One optimizer step: run this rank's packs forward and backward, sum gradients and counts over ranks, and update.

The loss is the mean over all trained tokens of the step. These are counted over all ranks first, and the summed loss of
every pack is divided by that count before its backward pass. So the gradients do not depend on how samples are
distributed over packs and ranks, even with unequal lengths. The balance loss is likewise a mean over documents; if the
model balances per batch (`seq_aux` false), it is a mean over packs, each of which is a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vl2.data.pack import Packed
from vl2.data.record import CATEGORIES
from vl2.model import VL2
from vl2.model.language import Hidden
from vl2.process.sample import IGNORE_ID
from vl2.process_tuning import tune_malloc
from vl2.train.balance import check_balance, update_expert_biases
from vl2.train.blank import blank_pack, run_pack
from vl2.train.loss import AuxiliaryLoss, next_token_loss, trained_positions
from vl2.train.optimizer import MasterAdamW
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parallel.tensor_parallel import own_positions
from vl2.train.parallel.tile_balance import TileBalancer, even_counts, imbalance
from vl2.train.parts import HasConfig, freeze, parameter_groups
from vl2.train.preference import PairLosses, pair_losses
from vl2.train.ranks import ONE, Ranks
from vl2.train.shard import RUN_PACK, is_sharded
from vl2.train.stage import Stage

LENGTH_MULTIPLE = 64


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The results of a step over all ranks, before the update."""

    loss: float  # mean over the trained tokens; 0 without any
    loss_by_category: Mapping[str, tuple[float, int]]  # (sum, count) of each category in the step
    num_trained_tokens: int
    num_tokens: int  # without padding
    num_tiles: int
    balance_loss: float  # unweighted: mean over the documents, summed over the layers
    auxiliary_loss: float  # unweighted: mean over its terms; 0 without one
    grad_norm: float  # before clipping
    grad_norm_by_part: Mapping[str, float]  # of each of NORM_PARTS; 0 if nothing in it is trained
    expert_load: Tensor  # int64 [MoE layers, E]
    preference_accuracy: float | None = None  # the share of pairs with a positive margin; None without pairs
    preference_margin: float | None = None  # the mean
    tile_imbalance: float = 1.0  # tiles of the busiest rank over the mean, before tile balancing
    tile_imbalance_balanced: float = 1.0  # the same after tile balancing


@dataclass(frozen=True, kw_only=True)
class StepCounts:
    """The counts of a step over all ranks."""

    trained_tokens: int
    tokens: int
    tiles: int
    balanced: int  # documents or packs over which the balance loss is averaged
    auxiliary: int  # terms of the auxiliary loss
    losses: int  # terms of the loss: trained tokens, or pairs
    tiles_by_rank: tuple[tuple[int, ...], ...]  # for each group of packs encoded together


class StepTally:
    """The running sums over the packs of a step. They stay on the device until the end, to avoid synchronization."""

    def __init__(self, model: HasConfig, device: torch.device) -> None:
        config = model.config.language_config
        num_layers = sum(config.is_moe_layer(i) for i in range(config.num_hidden_layers))
        self.loss_by_category = torch.zeros(len(CATEGORIES) + 1, 2, dtype=torch.float64, device=device)
        self.balance_loss = torch.zeros(1, dtype=torch.float64, device=device)
        self.auxiliary_loss = torch.zeros(1, dtype=torch.float64, device=device)
        self.pairs = torch.zeros(2, dtype=torch.float64, device=device)  # positive margins, sum of margins
        self.expert_load = torch.zeros(
            num_layers, config.n_routed_experts or 0 if num_layers else 0, dtype=torch.int64, device=device
        )

    def add(self, pack: Packed, loss_n: Tensor, hidden: Hidden, num_balanced: int, *, is_counted: bool = True) -> None:
        """Add a pack. `is_counted` is false if another rank counts its expert load and balance loss."""
        if is_counted:
            self.expert_load += hidden.expert_load
        self.add_loss(pack, loss_n, hidden.balance_loss.detach(), num_balanced if is_counted else 0)

    def add_pairs(self, pack: Packed, pairs: PairLosses, hidden: Hidden) -> None:
        self.expert_load += hidden.expert_load
        first_p = torch.arange(len(pairs.loss_p), device=pairs.loss_p.device) * 2
        self._add_by_category(pack, pairs.loss_p.detach(), first_p)
        margin_p = pairs.margin_p.detach().double()
        self.pairs += torch.stack(((margin_p > 0).double().sum(), margin_p.sum()))

    def add_loss(self, pack: Packed, loss_n: Tensor, balance_loss: Tensor, num_balanced: int) -> None:
        """Add the losses of a pack, the next-token loss by category."""
        self.balance_loss += balance_loss * num_balanced
        place_n = trained_positions(pack.labels)
        self._add_by_category(pack, loss_n, torch.bucketize(place_n, pack.cu_seqlens[1:], right=True))

    def _add_by_category(self, pack: Packed, loss_n: Tensor, document_n: Tensor) -> None:
        known = [CATEGORIES.index(name) if name in CATEGORIES else len(CATEGORIES) for name in pack.categories]
        # Padding is a document without category, and has no trained positions.
        category_n = torch.tensor([*known, len(CATEGORIES)], device=loss_n.device)[document_n]
        pairs_n2 = torch.stack((loss_n.double(), torch.ones_like(loss_n, dtype=torch.float64)), dim=1)
        self.loss_by_category.index_add_(0, category_n, pairs_n2)

    def sum_over(self, ranks: Ranks) -> None:
        for tensor in (self.loss_by_category, self.balance_loss, self.auxiliary_loss, self.pairs, self.expert_load):
            ranks.sum_(tensor)


class TrainStep:
    """Trains a model, which `shard` has placed on the ranks, with the settings of a stage."""

    def __init__(
        self,
        model: VL2 | PipelineModel,
        stage: Stage,
        ranks: Ranks,
        balancer: TileBalancer | None = None,
        *,
        auxiliary_loss: AuxiliaryLoss | None = None,
        auxiliary_weight: float = 1.0,
        seed: int = 0,
        data: Ranks | None = None,
        tensor: Ranks = ONE,
    ) -> None:
        """Create the optimizer, whose stochastic rounding has the `seed`.

        Without a `balancer`, every rank encodes its own tiles. `data` are the ranks with different packs, by default
        all, and `tensor` the ranks with the same packs.
        """
        check_balance(model, stage)
        if ranks.device.type == "cpu":
            tune_malloc()
        freeze(model, stage)
        self.model, self.stage, self.ranks = model, stage, ranks
        self.data_ranks = data or ranks
        """The ranks with different packs."""
        self._tensor = tensor
        self.optimizer = MasterAdamW(
            parameter_groups(model, stage),
            betas=stage.betas,
            eps=stage.eps,
            is_bfloat16=stage.is_bfloat16_optimizer,
            ranks=ranks,
            seed=seed,
        )
        self._is_sharded = is_sharded(model)
        self._balancer = balancer
        self._auxiliary_loss, self._auxiliary_weight = auxiliary_loss, auxiliary_weight
        self._is_preference = stage.objective == "preference"
        self._is_balanced_by_document = model.config.language_config.seq_aux

    @property
    def writes_whole(self) -> bool:
        """Whether this rank writes what all ranks with the same layers hold in full."""
        return self.data_ranks.is_first and self._tensor.is_first

    def accumulate(self, packs: Sequence[Packed]) -> StepReport:
        """Run this rank's packs forward and backward, and return the results over all ranks.

        All ranks must call this together, but a rank may have no packs. Without trained tokens the gradients are those
        of the balance loss alone.
        """
        own = [self._trim(pack) for pack in packs if pack.num_tokens]
        counts = self._count(own)
        tally = StepTally(self.model, self.ranks.device)
        self._run_all(own, counts, tally)
        self.optimizer.sum_over_ranks()
        tally.sum_over(self.ranks)
        return self._report(counts, tally)

    def apply(self, report: StepReport, learning_rate: float) -> None:
        """Clip the gradients, update the weights and the expert bias, and discard the gradients."""
        self._apply_gradients(report, learning_rate)
        update_expert_biases(self.model, report.expert_load, self.stage.expert_bias_step)

    def _apply_gradients(self, report: StepReport, learning_rate: float) -> None:
        limit = self.stage.clip_norm
        if report.grad_norm > limit:
            self.optimizer.scale(limit / report.grad_norm)
        self.optimizer.step(learning_rate)
        self.optimizer.zero()

    def discard(self) -> None:
        """Discard the gradients without an update."""
        self.optimizer.zero()

    def state_dict(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state)

    def _trim(self, pack: Packed) -> Packed:
        """Trim padding to a multiple of LENGTH_MULTIPLE, because oneDNN compiles its bfloat16 kernels per length."""
        return pack.with_length(-(-pack.num_tokens // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)

    def _count(self, packs: Sequence[Packed]) -> StepCounts:
        own = [0, 0, 0, 0, 0, 0]
        for pack in packs:
            own[0] += int((pack.labels[1:] != IGNORE_ID).sum())
            own[1] += pack.num_tokens
            own[2] += pack.num_views
            own[3] += self._num_balanced(pack)
            own[4] += self._auxiliary_loss.count(pack) if self._auxiliary_loss is not None else 0
            own[5] += len(pack.names) // 2
        total = self.data_ranks.sum_(torch.tensor(own, device=self.ranks.device)).tolist()
        return StepCounts(
            trained_tokens=total[0],
            tokens=total[1],
            tiles=total[2],
            balanced=total[3],
            auxiliary=total[4],
            losses=total[5] if self._is_preference else total[0],
            tiles_by_rank=self._count_tiles(packs),
        )

    def _count_tiles(self, packs: Sequence[Packed]) -> tuple[tuple[int, ...], ...]:
        """Return the number of tiles of every rank, for each group of packs that the ranks encode together."""
        together = self._packs_together
        own = [pack.num_views for pack in packs]
        size = together or max(len(own), 1)
        groups = [sum(own[first : first + size]) for first in range(0, len(own), size)]
        ranks = self.data_ranks
        most = int(ranks.max_(torch.tensor(len(groups), device=self.ranks.device)))
        held = torch.zeros(most, ranks.size, dtype=torch.int64, device=self.ranks.device)
        held[: len(groups), ranks.rank] = torch.tensor(groups, dtype=torch.int64, device=self.ranks.device)
        return tuple(map(tuple, ranks.sum_(held).tolist()))

    @property
    def _packs_together(self) -> int:
        """The packs per rank between two synchronizations of the encoder; 0 if ranks only synchronize per step."""
        if self._balancer is not None:
            return self._balancer.packs_together
        return 1 if self._is_sharded else 0

    def _num_balanced(self, pack: Packed) -> int:
        return len(pack.names) if self._is_balanced_by_document else 1

    def _with_blanks(self, packs: list[Packed]) -> list[Packed]:
        """Append blank packs so that all ranks have equally many, if the weights are sharded."""
        if not self._is_sharded:
            return packs
        num_rounds = int(self.ranks.max_(torch.tensor(len(packs), device=self.ranks.device)))
        blank = blank_pack(self.model.config)
        return packs + [blank] * (num_rounds - len(packs))

    def _run_all(self, own: list[Packed], counts: StepCounts, tally: StepTally) -> None:
        """Run this rank's packs forward and backward."""
        own = self._with_blanks(own)
        if self._balancer is None:
            for pack in own:
                # Move one pack at a time, because the tiles of a whole step may not fit on the device.
                self._run(pack.to(self.ranks.device), counts, tally)
            return
        for group in self._balancer.groups(own, counts.tiles_by_rank):
            for pack, tokens_IQD in zip(group.packs, group.tokens, strict=True):
                self._run(pack, counts, tally, tokens_IQD)
            group.backward()

    def _own_positions(self, pack: Packed) -> Packed:
        """Return the pack with labels for this rank's part of the trained positions only."""
        if self._tensor.size == 1:
            return pack
        place_n = trained_positions(pack.labels)
        return replace(pack, labels=own_positions(pack.labels, place_n, self._tensor, IGNORE_ID))

    def _run(self, pack: Packed, counts: StepCounts, tally: StepTally, tokens_IQD: Tensor | None = None) -> None:
        assert isinstance(self.model, VL2), "PipelineStep overrides this"
        runs_encoder = self._is_sharded and self._balancer is None
        run = getattr(self.model, RUN_PACK) if self._is_sharded else partial(run_pack, self.model)
        hidden: Hidden = run(pack, tokens_IQD, runs_encoder=runs_encoder)
        pack = self._own_positions(pack)
        if self._is_preference:
            pairs = pair_losses(self.model, pack, hidden.states_BSD[0], self.stage)
            (pairs.loss_p.sum() / max(counts.losses, 1)).backward()
            tally.add_pairs(pack, pairs, hidden)
            return
        total, loss_n = next_token_loss(hidden.states_BSD[0], pack.labels, self.model.language.lm_head.weight)
        num_balanced = self._num_balanced(pack) if pack.num_tokens else 0
        loss = total / max(counts.losses, 1)
        if self.stage.balance_loss_weight:
            share = num_balanced / max(counts.balanced, 1) / self._tensor.size
            loss = loss + hidden.balance_loss * (self.stage.balance_loss_weight * share)
        if self._auxiliary_loss is not None:
            auxiliary_loss = self._auxiliary_loss.take(pack)
            tally.auxiliary_loss += auxiliary_loss.detach()
            loss = loss + auxiliary_loss * (self._auxiliary_weight / max(counts.auxiliary, 1))
        # With the language model frozen, a pack without images has nothing to train.
        if loss.requires_grad:
            loss.backward()
        tally.add(pack, loss_n, hidden, num_balanced, is_counted=self._tensor.is_first)

    def _report(self, counts: StepCounts, tally: StepTally) -> StepReport:
        sums = tally.loss_by_category.tolist()
        norms = self.optimizer.grad_norms()
        named = zip(CATEGORIES, sums, strict=False)
        return StepReport(
            loss=sum(total for total, _ in sums) / max(counts.losses, 1),
            loss_by_category={name: (total, int(count)) for name, (total, count) in named if count},
            num_trained_tokens=counts.trained_tokens,
            num_tokens=counts.tokens,
            num_tiles=counts.tiles,
            balance_loss=float(tally.balance_loss) / max(counts.balanced, 1),
            auxiliary_loss=float(tally.auxiliary_loss) / max(counts.auxiliary, 1),
            grad_norm=math.sqrt(sum(norm**2 for norm in norms.values())),
            grad_norm_by_part=norms,
            expert_load=tally.expert_load,
            preference_accuracy=float(tally.pairs[0]) / max(counts.losses, 1) if self._is_preference else None,
            preference_margin=float(tally.pairs[1]) / max(counts.losses, 1) if self._is_preference else None,
            tile_imbalance=imbalance(counts.tiles_by_rank),
            tile_imbalance_balanced=self._balanced_imbalance(counts),
        )

    def _balanced_imbalance(self, counts: StepCounts) -> float:
        if self._balancer is None:
            return imbalance(counts.tiles_by_rank)
        return imbalance([even_counts(held) for held in counts.tiles_by_rank])
