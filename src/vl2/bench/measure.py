"""Measure targets stage by stage, in turns, with the machine's limits before and after; tell it as a table or JSON."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch

from vl2.bench.machine_limits import MachineLimits, measure_machine
from vl2.bench.protocol import Answer
from vl2.bench.stages import BenchStage, Bytes, Sizes, Types, load_stage
from vl2.bench.target import Target
from vl2.checkpoint.pages import MappedFile
from vl2.config import ModelConfig
from vl2.errors import UserError

LOAD_TIMEOUT_S = 3600.0
STAGE_TIMEOUT_S = 1800.0
# Threads that wait for more work keep a core busy: those of OpenMP for 0.2 s, and the next to be measured needs it.
SETTLE_S = 0.3
# A processor that has rested takes a third of a second to come to its speed, which a turn of one only would measure.
# Of other tokens each time, for a peer may know what it has read. What is measured has the rounds' numbers as seeds.
WARM_UP = {"do": "prefill", "tokens": 64}
WARM_UP_SEEDS = 1_000_000
_PIECE = bytearray(8 << 20)  # of a file, read at once

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Runs:
    """What one target reached."""

    name: str
    versions: dict[str, str]
    command: list[str]
    loaded: Answer
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by stage, one a round; bytes for memory
    unsupported: dict[str, str] = field(default_factory=dict)  # stage -> why


@dataclass(frozen=True, kw_only=True)
class SpeedComparison:
    """All that was measured. The first target is ours."""

    stages: list[BenchStage]
    runs: list[Runs]
    machine: MachineLimits

    def share(self, stage: BenchStage) -> float | None:
        """Return our share of what the machine allows, from the median run; None where no limit is known."""
        ours = self.runs[0]
        if stage.work is None or stage.name not in ours.seconds:
            return None
        held, types = Bytes(**ours.loaded["bytes"]), Types(**ours.loaded["compute"])
        return stage.work(held).least_seconds(self.machine, types) / median(ours.seconds[stage.name])

    def ratios(self, stage: BenchStage, peer: Runs) -> list[float]:
        """Return how many times the peer's time (or memory) is ours, round by round."""
        ours = self.runs[0].seconds.get(stage.name, [])
        return [theirs / own for own, theirs in zip(ours, peer.seconds.get(stage.name, []), strict=False)]


def compare(
    config: ModelConfig,
    commands: Sequence[Sequence[str]],
    stages: Sequence[BenchStage],
    load_task: dict[str, Any],
    sizes: Sizes,
    *,
    device: torch.device,
    say: Say,
) -> SpeedComparison:
    """Run every stage of every target once a round, the order of targets turned from round to round."""
    threads = load_task["threads"]
    with _threads(threads), contextlib.ExitStack() as stack:
        targets = [stack.enter_context(Target(command, threads=threads)) for command in commands]
        say("the machine's limits")
        machine = measure_machine(config, device)
        loading = load_stage(load_task)
        runs: list[Runs] = []
        for target in targets:
            say(f"load: {target.command[-1]}")
            # Ours alone is quantized; a peer says in its name what it holds.
            task = load_task if not runs else {**load_task, "weights": "auto"}
            _read_files(Path(load_task["model"]))
            loaded = target.ask(task, timeout_s=LOAD_TIMEOUT_S)
            if "unsupported" in loaded:
                raise UserError(f"`{shlex.join(target.command)}` cannot run this: {loaded['unsupported']}")
            made = Runs(
                name=_unique(target.text(loaded, "name", task), [before.name for before in runs]),
                versions=loaded.get("versions", {}),
                command=target.command,
                loaded=loaded,
            )
            if "not_loaded" in loaded:
                made.unsupported[loading.name] = target.text(loaded, "not_loaded", task)
            else:
                made.seconds[loading.name] = [target.number(loaded, "seconds", task)]
            runs.append(made)
        for target, made in zip(targets, runs, strict=True):
            say(f"warm up: {made.name}")
            _warm_up(target, stages)
        for number in range(1, sizes.rounds + 1):
            for index, stage in enumerate(stages):
                turn = list(zip(targets, runs, strict=True))
                for target, made in turn if number % 2 else reversed(turn):
                    say(f"round {number} of {sizes.rounds}: {stage.name}, {made.name}")
                    warm_up = {**WARM_UP, "seed": WARM_UP_SEEDS + number * len(stages) + index}
                    _measure(target, made, stage, seed=number, warm_up=warm_up)
            time.sleep(SETTLE_S)
            again = measure_machine(config, device, new_bytes_per_s=machine.new_bytes_per_s)
            machine = machine.best_with(again)
    return SpeedComparison(stages=[loading, *stages], runs=runs, machine=machine)


def _read_files(folder: Path) -> None:
    """Bring a checkpoint's files into the system's cache: who loads first is not to pay the disk for all.

    What comes from the disk comes in huge pages, where the system has them, as when a model of ours is loaded.
    """
    for path in folder.glob("*.safetensors"):
        file = MappedFile(path)
        file.prefer_huge_pages(True)
        file.read(0, file.nbytes)
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(_PIECE):
                pass


def _unique(name: str, taken: Sequence[str]) -> str:
    """Return a name that no other target has: the same one may be there twice."""
    names = (name, *(f"{name} #{number}" for number in range(2, len(taken) + 2)))
    return next(unique for unique in names if unique not in taken)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let PyTorch measure the limits with as many threads as the targets have."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(target: Target, made: Runs, stage: BenchStage, *, seed: int, warm_up: dict[str, Any]) -> None:
    if stage.name in made.unsupported:
        return
    time.sleep(SETTLE_S)
    if stage.task["do"] != "memory":
        target.ask(warm_up, timeout_s=STAGE_TIMEOUT_S)  # where it cannot be done, nothing is lost
    answer = target.ask({**stage.task, "seed": seed}, timeout_s=STAGE_TIMEOUT_S)
    if "unsupported" in answer:
        made.unsupported[stage.name] = answer["unsupported"]
        return
    run = target.number(answer, "bytes" if stage.unit == "GB" else "seconds", stage.task)
    made.seconds.setdefault(stage.name, []).append(run)


def _warm_up(target: Target, stages: Sequence[BenchStage]) -> None:
    """Let each kind of work run once with little, so that no round pays for kernels that are made when first used."""
    little = {"encode": {"tiles": 1}, "prefill": {"tokens": 64}, "decode": {"steps": 1}}
    for stage in stages:
        kind = stage.task["do"]
        if kind in little:
            target.ask({**stage.task, **little[kind], "seed": 0}, timeout_s=STAGE_TIMEOUT_S)


def to_dict(comparison: SpeedComparison, model: str) -> dict[str, Any]:
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


def _stage_dict(comparison: SpeedComparison, stage: BenchStage) -> dict[str, Any]:
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


def print_report(comparison: SpeedComparison, file: TextIO) -> None:
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


def _median(stage: BenchStage, runs: Any) -> str:
    values = runs.seconds.get(stage.name)
    return _number(stage.figure(median(values))) if values else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
