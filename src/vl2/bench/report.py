"""A contest as a table and as JSON."""

from __future__ import annotations

from statistics import median
from typing import Any, TextIO

from vl2.bench.run import Comparison
from vl2.bench.stages import Stage


def to_dict(comparison: Comparison, model: str) -> dict[str, Any]:
    """Return everything that was measured, runs included."""
    return {
        "model": model,
        "machine": comparison.machine.to_dict(),
        "contestants": [
            {"name": runs.name, "versions": runs.versions, "command": runs.command, "loaded": runs.loaded}
            for runs in comparison.runs
        ],
        "stages": [_stage_dict(comparison, stage) for stage in comparison.stages],
    }


def _stage_dict(comparison: Comparison, stage: Stage) -> dict[str, Any]:
    ratios = {peer.name: ratios for peer in comparison.runs[1:] if (ratios := comparison.ratios(stage, peer))}
    return {
        "name": stage.name,
        "unit": stage.unit,
        "figures": {
            runs.name: [stage.figure(run) for run in runs.seconds[stage.name]]
            for runs in comparison.runs
            if stage.name in runs.seconds
        },
        "share_of_limit": comparison.share(stage),
        "peer_over_ours": {name: {"median": median(values), "rounds": values} for name, values in ratios.items()},
        "unsupported": {
            runs.name: runs.unsupported[stage.name] for runs in comparison.runs if stage.name in runs.unsupported
        },
    }


def print_report(comparison: Comparison, file: TextIO) -> None:
    """Print the limits, then a row a stage."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, machine = Console(file=file, highlight=False), comparison.machine
    console.print(
        f"{machine.device}, {machine.threads} threads: reads {machine.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"gets new memory at {machine.new_bytes_per_s / 1e9:.1f}; matrix products in GOP/s"
    )
    products = Table("type", *next(iter(machine.products.values())), box=SIMPLE_HEAD)
    for kind, rates in machine.products.items():
        products.add_row(kind, *(_number(rate / 1e9) for rate in rates.values()))
    console.print(products)

    ours, *peers = comparison.runs
    for line in ours.loaded.get("runner", ()):
        console.print(line)
    if "kernels" in ours.loaded:
        console.print(f"kernels: {ours.loaded['kernels']}")
    if "compute" in ours.loaded:
        parts = ", ".join(f"{part} in {kind}" for part, kind in ours.loaded["compute"].items())
        console.print(f"multiplied: {parts}")
    table = Table("", "unit", ours.name, "of the limit", box=SIMPLE_HEAD)
    for peer in peers:
        table.add_column(peer.name, justify="right")
        table.add_column("takes", justify="right")
    for column in table.columns[2:]:
        column.justify = "right"
    for stage in comparison.stages:
        share = comparison.share(stage)
        cells = [stage.name, stage.unit, _median(stage, ours), "" if share is None else f"{share:.0%}"]
        for peer in peers:
            ratios = comparison.ratios(stage, peer)
            cells += [_median(stage, peer), f"{median(ratios):.2f} x" if ratios else ""]
        table.add_row(*cells)
    console.print(table)
    if peers:
        console.print('"takes": the peer\'s time or memory, as a multiple of ours; above 1 ours is the better.')


def _median(stage: Stage, runs: Any) -> str:
    values = runs.seconds.get(stage.name)
    return _number(stage.figure(median(values))) if values else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
