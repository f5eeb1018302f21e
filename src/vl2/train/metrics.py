"""Measure the steps of a run: losses, load balance, speed and MFU; and read and write metrics.jsonl.

`metrics.jsonl` in the run folder is always written, with one line per step and per evaluation. A resumed run removes
the lines after its checkpoint, so that every step occurs once. Expert loads are per MoE layer.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vl2.data.loader import LoadedStep
from vl2.data.pack import Packed
from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.balance import load_over_mean, routers
from vl2.train.flops import ForwardCost, measure_rate, step_flops
from vl2.train.loss import trained_positions
from vl2.train.parallel.pipeline_model import PipelineModel
from vl2.train.parts import still_parts
from vl2.train.ranks import Ranks
from vl2.train.stage import Stage
from vl2.train.step import StepReport

METRICS = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of one step over all ranks. A discarded step has a reason and did not change the weights."""

    step: int  # counted from 1
    loss: float
    loss_by_category: Mapping[str, float]
    balance_loss: float
    auxiliary_loss: float
    learning_rate: float
    grad_norm: float
    grad_norm_by_part: Mapping[str, float] = field(default_factory=dict)  # of the trained parts
    tokens: int  # without padding
    trained_tokens: int
    tiles: int
    lost_records: int = 0  # records that could not be read and became padding
    tile_imbalance: float = 1.0  # tiles of the busiest rank over the mean, before tile balancing
    tile_imbalance_balanced: float = 1.0  # the same after tile balancing
    is_packed: bool = True
    pack_fill: float  # the fraction of sequence positions that are not padding
    expert_load: tuple[float, ...]  # by layer, load of the fullest expert over the mean
    preference_accuracy: float | None = None  # the share of pairs with a positive margin; None without pairs
    preference_margin: float | None = None  # the mean
    bias_range: tuple[float, ...]  # by layer, the largest minus the smallest expert bias
    discarded: str = ""  # the reason, if the step was discarded
    num_discarded: int = 0  # so far
    # The fields below depend on the machine and differ between runs of one recipe.
    step_s: float
    data_wait_s: float
    tokens_per_s: float
    tiles_per_s: float
    mfu: float | None  # the fraction of the machine's measured rate of matrix products

    def to_dict(self) -> dict[str, Any]:
        return _without_nan(dataclasses.asdict(self))

    def scalars(self) -> dict[str, float]:
        """Return the values for trackers, with names like "group/name"."""
        loads, ranges = self.expert_load, self.bias_range
        values: dict[str, float | None] = {
            "loss/all": self.loss,
            **{f"loss/{name}": value for name, value in self.loss_by_category.items()},
            "loss/balance": self.balance_loss,
            "loss/auxiliary": self.auxiliary_loss,
            "preference/accuracy": self.preference_accuracy,
            "preference/margin": self.preference_margin,
            "step/learning_rate": self.learning_rate,
            "step/grad_norm": self.grad_norm,
            **{f"grad_norm/{part}": norm for part, norm in self.grad_norm_by_part.items()},
            "step/tokens": self.tokens,
            "step/tiles": self.tiles,
            "step/lost_records": self.lost_records,
            "step/tile_imbalance": self.tile_imbalance,
            "step/tile_imbalance_balanced": self.tile_imbalance_balanced,
            "step/pack_fill": self.pack_fill,
            "step/num_discarded": self.num_discarded,
            **{f"expert_load/layer_{i}": value for i, value in enumerate(loads)},
            **({"expert_load/max": max(loads)} if loads else {}),
            **({"bias_range/max": max(ranges)} if ranges else {}),
            "speed/tokens_per_s": self.tokens_per_s,
            "speed/tiles_per_s": self.tiles_per_s,
            "speed/data_wait_s": self.data_wait_s,
            "speed/mfu": self.mfu,
        }
        return {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}


# The fields that may differ between two runs of one recipe.
MACHINE_DEPENDENT = ("step_s", "data_wait_s", "tokens_per_s", "tiles_per_s", "mfu")


class MetricsFile:
    """Appends lines to metrics.jsonl without buffering, so that a kill loses none."""

    def __init__(self, folder: Path, *, last_step: int = 0) -> None:
        """Open the file and remove lines after `last_step` and an incomplete last line."""
        self._path = folder / METRICS
        try:
            self._drop_lines_after(last_step)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise self._write_error(error) from None

    def append(self, values: Mapping[str, Any]) -> None:
        line = json.dumps(_without_nan(values), ensure_ascii=False, allow_nan=False) + "\n"
        data = line.encode()
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise self._write_error(error) from None

    def close(self) -> None:
        self._file.close()

    def _drop_lines_after(self, last_step: int) -> None:
        if not self._path.exists():
            return
        kept = [line for line in read_metrics(self._path) if line["step"] <= last_step]
        partial = self._path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self._path)

    def _write_error(self, error: OSError) -> UserError:
        return UserError(f"cannot write {self._path}: {error.strerror or error}")


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of metrics.jsonl, given the file or the run folder. An incomplete last line is left out.

    Raise UserError if the file is missing or damaged.
    """
    path = path if path.name == METRICS else path / METRICS
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {METRICS} in {path.parent}: is this a run folder?") from None
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            step = values["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                return
            raise UserError(f"{path} is damaged at line {number}") from None
        if line.endswith("\n") and isinstance(step, int):
            yield values


def _without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON cannot represent, by null."""

    def clean(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Mapping):
            return {name: clean(one) for name, one in value.items()}
        return [clean(one) for one in value] if isinstance(value, list | tuple) else value

    return {name: clean(value) for name, value in values.items()}


class Meter:
    """Measures the steps of one run. The constructor measures the rate of matrix products for the MFU."""

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
        """Measure the device. `data_ranks` are the ranks with different packs, by default all.

        `trains_weights` is false if an adapter is trained.
        """
        self._model, self._stage, self._ranks = model, stage, data_ranks or ranks
        self._still = model.still_parts if isinstance(model, PipelineModel) else still_parts(model)
        self._trains_weights = trains_weights
        self._cost = ForwardCost.of(model.config)
        self._rate = measure_rate(ranks.device, dtype) * ranks.size

    def totals(self, loaded: LoadedStep) -> tuple[float, int]:
        """Return the operations and the lost records of a step over all ranks, which must call this together."""
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
            grad_norm_by_part={part: norm for part, norm in report.grad_norm_by_part.items() if norm},
            tokens=report.num_tokens,
            trained_tokens=report.num_trained_tokens,
            tiles=report.num_tiles,
            lost_records=num_lost,
            tile_imbalance=report.tile_imbalance,
            tile_imbalance_balanced=report.tile_imbalance_balanced,
            is_packed=self._stage.is_packed,
            pack_fill=report.num_tokens / places,
            expert_load=tuple(load_over_mean(report.expert_load)),
            preference_accuracy=report.preference_accuracy,
            preference_margin=report.preference_margin,
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
            lengths=pack.cu_seqlens.diff().tolist()[: len(pack.names)],  # without the padding document
            num_trained=len(trained_positions(pack.labels)),
            num_tiles=len(pack.tiles),
            num_overviews=pack.num_overviews,
            trains_weights=self._trains_weights,
        )


def bias_range(model: nn.Module) -> tuple[float, ...]:
    """Return the largest minus the smallest expert bias, for each layer on this rank that has a bias."""
    biases = [bias for router in routers(model) if (bias := router.e_score_correction_bias) is not None]
    return tuple(torch.stack([bias.max() - bias.min() for bias in biases]).tolist()) if biases else ()
