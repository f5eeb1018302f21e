"""Print plans as tables, followed by their assumptions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from vl2.plan.search import PlannedStage


@dataclass(frozen=True, kw_only=True)
class PaperRow:
    """The plan of one model size on the paper's cluster, beside the days that the paper reports."""

    size: str
    paper_days: float
    stages: tuple[PlannedStage, ...]

    @property
    def days(self) -> float:
        return sum(stage.days for stage in self.stages)

    @property
    def factor(self) -> float:
        """Return the paper's days divided by the planned days."""
        return self.paper_days / self.days

    @property
    def paper_mfu(self) -> float:
        """Return the MFU that follows from the paper's days, with our count of operations."""
        cluster = self.stages[0].cluster
        flops = sum(stage.flops_per_step * stage.num_steps for stage in self.stages)
        return flops / (self.paper_days * 86_400 * cluster.peak_flops * cluster.num_gpus)

    def to_dict(self) -> dict[str, Any]:
        return {
            "size": self.size,
            "gpus": self.stages[0].cluster.num_gpus,
            "paper_days": self.paper_days,
            "days": self.days,
            "factor": self.factor,
            "paper_mfu": self.paper_mfu,
            "stages": [stage.to_dict() for stage in self.stages],
        }


def print_stages(size: str, stages: Sequence[PlannedStage], file: TextIO) -> None:
    """Print a table with one column per training stage."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, width=None if file.isatty() else 120)
    cluster = stages[0].cluster
    console.print(f"{size} on {cluster.num_gpus} GPUs")
    table = Table("", *(stage.stage for stage in stages), box=SIMPLE_HEAD)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, cells in _rows(stages):
        table.add_row(name, *cells)
    console.print(table)
    if len(stages) > 1:
        days = sum(stage.days for stage in stages)
        hours = sum(stage.gpu_hours for stage in stages)
        console.print(f"all stages: {days:.1f} days, {hours:,.0f} GPU-hours")
    _print_assumptions(stages[0], file)


def print_paper(rows: Sequence[PaperRow], file: TextIO) -> None:
    """Print the paper's days beside the planned days, and what the plan leaves out."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, width=None if file.isatty() else 120)
    names = (
        "size",
        "GPUs",
        "planned days",
        "by stage",
        "paper's days",
        "paper / planned",
        "planned MFU",
        "paper's MFU",
        "layout",
    )
    table = Table(*names, box=SIMPLE_HEAD)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for row in rows:
        main = max(row.stages, key=lambda stage: stage.days)
        table.add_row(
            row.size,
            str(main.cluster.num_gpus),
            f"{row.days:.1f}",
            " + ".join(f"{stage.days:.1f}" for stage in row.stages),
            f"{row.paper_days:g}",
            f"{row.factor:.2f}",
            f"{main.mfu:.1%}",
            f"{row.paper_mfu:.1%}",
            _layout(main),
        )
    console.print(table)
    print(
        "The paper reports days and GPUs, but neither degrees of parallelism nor MFU. Its days include restarts and\n"
        "failed machines, evaluation and checkpoints, data loading, repeated steps, and pauses between stages; the\n"
        "planned days do not. Fine-tuning has 64 sequences in a step, so most of a large cluster waits. Whether the\n"
        "paper's days count it on all GPUs is not said.",
        file=file,
    )
    _print_assumptions(rows[0].stages[0], file)


def _rows(stages: Sequence[PlannedStage]) -> list[tuple[str, list[str]]]:
    def cells(make: Any) -> list[str]:
        return [make(stage) for stage in stages]

    return [
        ("layout", cells(_layout)),
        ("peak memory of a GPU", cells(lambda s: f"{s.step.memory_bytes / 1e9:.1f} GB")),
        ("step", cells(lambda s: f"{s.step.total_s:.2f} s")),
        ("  computing, padding included", cells(lambda s: f"{s.step.compute_s:.2f} s")),
        ("  waiting in the pipeline", cells(lambda s: f"{s.step.waiting_s:.2f} s")),
        ("  tokens to experts and back", cells(lambda s: f"{s.step.experts_s:.2f} s")),
        ("  sums in divided layers", cells(lambda s: f"{s.step.sums_s:.2f} s")),
        ("  weights and gradients", cells(lambda s: f"{s.step.weights_s:.2f} s")),
        ("  tiles to other ranks", cells(lambda s: f"{s.step.tiles_s:.2f} s")),
        ("  updating the weights", cells(lambda s: f"{s.step.update_s:.2f} s")),
        ("bubble", cells(lambda s: f"{s.step.bubble:.1%}")),
        ("tiles, busiest rank over mean", cells(lambda s: f"{s.step.imbalance_before:.2f}")),
        ("  balanced", cells(lambda s: f"{s.step.imbalance_after:.2f}")),
        ("tokens in a step", cells(lambda s: f"{s.tokens_per_step:,.0f}")),
        ("tiles in a step", cells(lambda s: f"{s.tiles_per_step:,.0f}")),
        ("tokens per second", cells(lambda s: f"{s.tokens_per_s:,.0f}")),
        ("share of the peak rate (MFU)", cells(lambda s: f"{s.mfu:.1%}")),
        ("steps", cells(lambda s: f"{s.num_steps:,}")),
        ("days", cells(lambda s: f"{s.days:.2f}")),
        ("GPU-hours", cells(lambda s: f"{s.gpu_hours:,.0f}")),
    ]


def _layout(stage: PlannedStage) -> str:
    choice = stage.choice
    pipeline = f"{choice.pipeline} stages, {choice.cut}" if choice.pipeline > 1 else "no pipeline"
    kept = "all" if choice.recomputes else "encoder" if choice.recomputes_encoder else "nothing"
    return (
        f"{pipeline}; {stage.num_data} data, {choice.tensor_parallel} tensor, {choice.expert_parallel} expert; "
        f"{kept} recomputed"
    )


def _print_assumptions(stage: PlannedStage, file: TextIO) -> None:
    cluster = stage.cluster
    print(
        f"Assumed: {cluster.peak_flops / 1e12:.0f} TFLOP/s per GPU, of which dense layers reach "
        f"{cluster.dense_efficiency:.0%} and experts {cluster.expert_efficiency:.0%};\n"
        f"{cluster.node_bandwidth / 1e9:.0f} GB/s per GPU within a machine of {cluster.gpus_per_node}, "
        f"{cluster.network_bandwidth / 1e9:.0f} GB/s per machine between machines;\n"
        f"{cluster.overlap:.0%} of the communication of weights overlaps with computation; "
        f"experts are used evenly;\n"
        f"half of the tokens have a loss.",
        file=file,
    )
