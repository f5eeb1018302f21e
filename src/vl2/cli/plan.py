"""The command `vl2 plan`, which finds the fastest layout of a training stage on a cluster and estimates its time."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from vl2.cli.flags import OptionalText, OutputFlags, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.plan.cluster import Cluster, DataProfile
    from vl2.plan.plan_report import PaperRow
    from vl2.plan.search import PlannedStage
    from vl2.train.parallel.pipeline_split import UnitCosts

OptionalInt = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
OptionalFloat = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Find the best layout of a training stage on a cluster, by simulation: memory, step time, bubble, days.

    Examples:
      vl2 plan --size base --stage pretraining --gpus 336
      vl2 plan --size small --stage all --gpus 264 --gpu a100 --picture schedule.png
      vl2 plan --size tiny --gpus 16 --gpu h100 --profile stats.json --pipeline 1 --json
      vl2 plan --paper

    stats.json is what `vl2 data stats SHARDS --json` prints; docs/scale.md says how the simulation works.
    """

    size: Literal["tiny", "small", "base"] = "base"
    """the model's size"""
    stage: Literal["alignment", "pretraining", "fine-tuning", "all"] = "pretraining"
    """of the paper's three, or all of them"""
    gpus: int = 64
    """how many"""
    gpu: Literal["a100-pcie", "a100", "h100", "h200"] = "a100"
    """what kind; the numbers that follow take the place of its own"""
    gpus_per_node: int = 8
    """in one machine"""
    memory_gb: OptionalFloat = None
    """of one GPU, 10^9 bytes"""
    tflops: OptionalFloat = None
    """peak rate of one GPU in bfloat16, 10^12 operations per second"""
    node_gb_per_s: OptionalFloat = None
    """between the GPUs of a machine, of one GPU, one way"""
    network_gb_per_s: OptionalFloat = None
    """between machines, of one machine, one way"""
    dense_efficiency: float = 0.45
    """part of the peak rate that dense products reach"""
    expert_efficiency: float = 0.35
    """part of the peak rate that the experts' products reach"""
    overlap: float = 0.5
    """part of the traffic of weights and gradients that computing hides"""
    profile: OptionalText = None
    """JSON of `vl2 data stats`; a common mixture by default"""
    costs: OptionalText = None
    """JSON of measured seconds per tile and token of each kind of layer, in place of rates"""
    measure: OptionalText = None
    """write those seconds, measured on this machine with one layer of each kind, into this file; plan nothing"""
    pipeline: OptionalInt = None
    """stages; the best number by default"""
    expert_parallel: OptionalInt = None
    """ranks that share a set of experts; the best number by default"""
    tensor_parallel: OptionalInt = None
    """ranks that divide every layer; the best of 1, 2, 4 and 8 by default"""
    cut: Annotated[Literal["looped", "contiguous", "encoder_first"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """where the model is cut; the best way by default"""
    unbalanced: bool = False
    """let every rank encode its own tiles"""
    recompute: Annotated[bool | None, tyro.conf.arg(help_behavior_hint="")] = None
    """compute activations again in the backward pass: True or False; the faster that fits by default"""
    picture: OptionalText = None
    """draw the schedule of a step into this file, .png, .svg or .pdf"""
    paper: bool = False
    """compare the three sizes with the days that the paper gives, and say what is assumed"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.plan.plan_report import print_paper, print_stages

        if self.measure is not None:
            self._measure(Path(self.measure))
            return
        if self.paper:
            rows = self._paper()
            if self.output.json:
                print_json([row.to_dict() for row in rows])
            else:
                print_paper(rows, sys.stdout)
            return
        stages = self._stages(self.size, self._cluster(self.gpus))
        if self.output.json:
            print_json([stage.to_dict() for stage in stages])
        else:
            print_stages(self.size, stages, sys.stdout)
        if self.picture is not None:
            self._draw(stages[-1] if self.stage != "all" else stages[1], Path(self.picture))

    def _stages(self, size: str, cluster: Cluster, name: str | None = None) -> list[PlannedStage]:
        from vl2.config import preset
        from vl2.plan.search import FixedLayout, plan_stage
        from vl2.train.stage import STAGES

        fixed = FixedLayout(
            pipeline=self.pipeline,
            expert_parallel=self.expert_parallel,
            tensor_parallel=self.tensor_parallel,
            cut=self.cut,
            balances_tiles=not self.unbalanced,
            recomputes=self.recompute,
        )
        chosen = name or self.stage
        stages = [stage for key, stage in STAGES[size].items() if chosen in ("all", key)]
        profile, costs = self._profile(), self._costs()
        return [plan_stage(preset(size), stage, cluster, profile, fixed, costs) for stage in stages]

    def _paper(self) -> list[PaperRow]:
        from vl2.plan.plan_report import PaperRow
        from vl2.plan.search import PAPER

        return [
            PaperRow(size=size, paper_days=days, stages=tuple(self._stages(size, self._cluster(gpus), "all")))
            for size, (gpus, days) in PAPER.items()
        ]

    def _cluster(self, num_gpus: int) -> Cluster:
        from vl2.plan.cluster import DEVICES, Cluster

        device = DEVICES[self.gpu]
        return Cluster(
            num_gpus=num_gpus,
            gpus_per_node=min(self.gpus_per_node, num_gpus),
            memory_bytes=_scaled(self.memory_gb, 1e9, device.memory_bytes),
            peak_flops=_scaled(self.tflops, 1e12, device.peak_flops),
            node_bandwidth=_scaled(self.node_gb_per_s, 1e9, device.node_bandwidth),
            network_bandwidth=_scaled(self.network_gb_per_s, 1e9, device.network_bandwidth),
            dense_efficiency=self.dense_efficiency,
            expert_efficiency=self.expert_efficiency,
            overlap=self.overlap,
        )

    def _profile(self) -> DataProfile:
        from vl2.plan.cluster import DataProfile

        return DataProfile.common() if self.profile is None else DataProfile.read(Path(self.profile))

    def _costs(self) -> UnitCosts | None:
        from vl2.train.parallel.pipeline_split import UnitCosts

        return None if self.costs is None else UnitCosts.read(Path(self.costs))

    def _measure(self, path: Path) -> None:
        from vl2.config import preset
        from vl2.plan.unit_sizes import measure_here

        costs = measure_here(preset(self.size), self._profile())
        try:
            costs.write(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from None
        if not self.output.quiet:
            print(f"vl2: the costs of {self.size} are in {path}", file=sys.stderr)

    def _draw(self, stage: PlannedStage, path: Path) -> None:
        from vl2.plan.timeline import draw_timelines

        if not stage.step.timelines:
            raise UserError("the best layout has no pipeline, so there is no schedule to draw: give --pipeline")
        titles = ["batches with images", "text alone"][: len(stage.step.timelines)]
        draw_timelines(stage.step.timelines, titles, path)
        if not self.output.quiet:
            print(f"vl2: the schedule is in {path}", file=sys.stderr)


def _scaled(given: float | None, unit: float, otherwise: float) -> float:
    return otherwise if given is None else given * unit
