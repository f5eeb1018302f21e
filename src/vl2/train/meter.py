"""The measurements of a step: what the model did, how evenly, how fast, and how much of the machine's rate that is."""

from __future__ import annotations

import torch
from torch import nn

from vl2.data.loader import LoadedStep
from vl2.data.packed import Packed
from vl2.model import VL2
from vl2.train.balance import load_over_mean, routers
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.loss import trained_positions
from vl2.train.metrics import StepMetrics
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parts import still_parts
from vl2.train.ranks import Ranks
from vl2.train.stage import Stage
from vl2.train.step import StepReport


class Meter:
    """Measures the steps of one run. The rate of the ranks' matrix products is taken when it is made."""

    def __init__(
        self,
        model: VL2 | PipelineModel,
        stage: Stage,
        ranks: Ranks,
        dtype: torch.dtype,
        *,
        data_ranks: Ranks | None = None,
        trains_weights: bool = True,
    ) -> None:
        """`data_ranks` are those with different packs; None: all. `trains_weights` is false where an adapter is."""
        self._model, self._stage, self._ranks = model, stage, data_ranks or ranks
        self._still = model.still_parts if isinstance(model, PipelineModel) else still_parts(model)
        self._trains_weights = trains_weights
        self._cost = ForwardCost.of(model.config)
        self._rate = measure_rate(ranks.device, dtype) * ranks.size

    def totals(self, loaded: LoadedStep) -> tuple[float, int]:
        """Return the operations of a step and its lost records on all ranks, which call it together."""
        own = [sum(map(self._pack_flops, loaded.packs)), loaded.num_lost]
        flops, num_lost = self._ranks.sum_(torch.tensor(own, dtype=torch.float64)).tolist()
        return flops, int(num_lost)

    def measure(
        self,
        step: int,
        loaded: LoadedStep,
        report: StepReport,
        *,
        rate: float,
        discarded: str,
        num_discarded: int,
        totals: tuple[float, int],
        seconds: float,
        waited: float,
    ) -> StepMetrics:
        flops, num_lost = totals
        places = sum(map(len, loaded.division.ranks)) * self._stage.seq_len
        return StepMetrics(
            step=step,
            loss=report.loss,
            loss_by_category={
                name: total / count for name, (total, count) in sorted(report.loss_by_category.items()) if count
            },
            balance_loss=report.balance_loss,
            auxiliary_loss=report.auxiliary_loss,
            learning_rate=rate,
            grad_norm=report.grad_norm,
            tokens=report.num_tokens,
            trained_tokens=report.num_trained_tokens,
            tiles=report.num_tiles,
            lost_records=num_lost,
            tile_imbalance=report.tile_imbalance,
            tile_imbalance_balanced=report.tile_imbalance_balanced,
            pack_fill=report.num_tokens / places,
            expert_load=tuple(load_over_mean(report.expert_load)),
            bias_range=bias_range(self._model),
            discarded=discarded,
            num_discarded=num_discarded,
            step_s=seconds,
            data_wait_s=waited,
            tokens_per_s=report.num_tokens / seconds,
            tiles_per_s=report.num_tiles / seconds,
            mfu=flops / seconds / self._rate,
        )

    def _pack_flops(self, pack: Packed) -> float:
        return step_flops(
            self._cost,
            self._still,
            lengths=pack.cu_seqlens.diff().tolist()[: len(pack.names)],  # without the document of padding
            num_trained=len(trained_positions(pack.labels)),
            num_tiles=len(pack.tiles),
            trains_weights=self._trains_weights,
        )


def bias_range(model: nn.Module) -> tuple[float, ...]:
    """Return largest less smallest expert bias of each layer that has one and is held here."""
    biases = [bias for router in routers(model) if (bias := router.e_score_correction_bias) is not None]
    return tuple(torch.stack([bias.max() - bias.min() for bias in biases]).tolist()) if biases else ()
