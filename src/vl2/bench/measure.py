"""Run a benchmark: measure the targets stage by stage, alternating between them, and report a table or JSON.

The machine's limits are measured before the first round and after each round.
"""

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
from vl2.bench.stages import BenchStage, ComputeTypes, ModelBytes, Sizes, load_stage
from vl2.bench.target import Target
from vl2.checkpoint.pages import MappedFile
from vl2.config import ModelConfig
from vl2.errors import UserError

LOAD_TIMEOUT_S = 3600.0
STAGE_TIMEOUT_S = 1800.0
# Idle OpenMP threads spin for 0.2 s and keep cores busy that the next target needs, so we wait before each measurement.
SETTLE_S = 0.3
# An idle processor needs a third of a second to reach its full clock rate, so each measurement follows a short prefill.
# Its seed is new each time, because a target may cache prompts that it has seen. The measured tasks have the round's
# number as seed, which is below WARM_UP_SEEDS.
WARM_UP = {"do": "prefill", "tokens": 64}
WARM_UP_SEEDS = 1_000_000
_READ_BUFFER = bytearray(8 << 20)  # for one chunk of a file

ReportProgress = Callable[[str], None]


@dataclass(kw_only=True)
class TargetResults:
    """The measurements of one target."""

    name: str
    versions: dict[str, str]
    command: list[str]
    loaded: Answer
    seconds: dict[str, list[float]] = field(default_factory=dict)  # stage -> one value a round; bytes for memory
    unsupported: dict[str, str] = field(default_factory=dict)  # stage -> reason


@dataclass(frozen=True, kw_only=True)
class SpeedComparison:
    """All measurements of a benchmark. The first target is vl2."""

    stages: list[BenchStage]
    runs: list[TargetResults]
    machine: MachineLimits

    def share(self, stage: BenchStage) -> float | None:
        """Return what share of the machine's limit vl2 reaches in its median run, or None if no limit is known."""
        ours = self.runs[0]
        if stage.work is None or stage.name not in ours.seconds:
            return None
        memory, types = ModelBytes(**ours.loaded["bytes"]), ComputeTypes(**ours.loaded["compute"])
        return stage.work(memory).min_seconds(self.machine, types) / median(ours.seconds[stage.name])

    def ratios(self, stage: BenchStage, peer: TargetResults) -> list[float]:
        """Return the peer's time (or memory) divided by ours, for each round."""
        ours = self.runs[0].seconds.get(stage.name, [])
        return [peer_s / our_s for our_s, peer_s in zip(ours, peer.seconds.get(stage.name, []), strict=False)]


def compare(
    config: ModelConfig,
    commands: Sequence[Sequence[str]],
    stages: Sequence[BenchStage],
    load_task: dict[str, Any],
    sizes: Sizes,
    *,
    device: torch.device,
    say: ReportProgress,
) -> SpeedComparison:
    """Run every stage on every target once per round. The order of the targets is reversed every second round.

    Each target is a process started from its command; the first is vl2. Raise UserError if a target fails.
    """
    threads = load_task["threads"]
    with _threads(threads), contextlib.ExitStack() as stack:
        targets = [stack.enter_context(Target(command, threads=threads)) for command in commands]
        say("the machine's limits")
        machine = measure_machine(config, device)
        loading = load_stage(load_task)
        runs: list[TargetResults] = []
        for target in targets:
            say(f"load: {target.command[-1]}")
            # Only vl2 gets the chosen quantization. A peer reports in its name which weights it has loaded.
            task = load_task if not runs else {**load_task, "weights": "auto"}
            _warm_file_cache(Path(load_task["model"]))
            loaded = target.ask(task, timeout_s=LOAD_TIMEOUT_S)
            if "unsupported" in loaded:
                raise UserError(f"`{shlex.join(target.command)}` cannot run this: {loaded['unsupported']}")
            results = TargetResults(
                name=_unique_name(target.text(loaded, "name", task), [before.name for before in runs]),
                versions=loaded.get("versions", {}),
                command=target.command,
                loaded=loaded,
            )
            if "not_loaded" in loaded:
                results.unsupported[loading.name] = target.text(loaded, "not_loaded", task)
            else:
                results.seconds[loading.name] = [target.number(loaded, "seconds", task)]
            runs.append(results)
        for target, results in zip(targets, runs, strict=True):
            say(f"warm up: {results.name}")
            _warm_up(target, stages)
        for number in range(1, sizes.rounds + 1):
            for index, stage in enumerate(stages):
                turn = list(zip(targets, runs, strict=True))
                for target, results in turn if number % 2 else reversed(turn):
                    say(f"round {number} of {sizes.rounds}: {stage.name}, {results.name}")
                    warm_up = {**WARM_UP, "seed": WARM_UP_SEEDS + number * len(stages) + index}
                    _measure(target, results, stage, seed=number, warm_up=warm_up)
            time.sleep(SETTLE_S)
            again = measure_machine(config, device, first_write_bytes_per_s=machine.first_write_bytes_per_s)
            machine = machine.best_with(again)
    rows = [row for stage in stages for row in (stage, *stage.parts)]
    return SpeedComparison(stages=[loading, *rows], runs=runs, machine=machine)


def _warm_file_cache(folder: Path) -> None:
    """Read a checkpoint's files into the page cache, so that no target's load time includes the disk.

    The files are cached in huge pages if the system supports that, as when vl2 loads a model.
    """
    for path in folder.glob("*.safetensors"):
        file = MappedFile(path)
        file.prefer_huge_pages(True)
        file.read(0, file.nbytes)
        with path.open("rb", buffering=0) as stream:
            while stream.readinto(_READ_BUFFER):
                pass


def _unique_name(name: str, taken: Sequence[str]) -> str:
    """Return a name that no other target has, with a number added if the same program is measured twice."""
    names = (name, *(f"{name} #{number}" for number in range(2, len(taken) + 2)))
    return next(unique for unique in names if unique not in taken)


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Let PyTorch in this process, which measures the limits, use as many threads as the targets."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(target: Target, results: TargetResults, stage: BenchStage, *, seed: int, warm_up: dict[str, Any]) -> None:
    if stage.name in results.unsupported:
        return
    time.sleep(SETTLE_S)
    if stage.task["do"] != "memory":
        target.ask(warm_up, timeout_s=STAGE_TIMEOUT_S)  # the answer may be "unsupported"
    answer = target.ask({**stage.task, "seed": seed}, timeout_s=STAGE_TIMEOUT_S)
    if "unsupported" in answer:
        results.unsupported[stage.name] = answer["unsupported"]
        return
    for row in (stage, *stage.parts):
        if row is stage or row.key in answer:  # a peer may know the whole alone
            run = target.number(answer, row.key, stage.task)
            results.seconds.setdefault(row.name, []).append(run)


def _warm_up(target: Target, stages: Sequence[BenchStage]) -> None:
    """Run each kind of task once at a small size, so that no round includes kernels compiled at first use."""
    small = {"encode": {"tiles": 1}, "prefill": {"tokens": 64}, "decode": {"steps": 1}}
    for stage in stages:
        kind = stage.task["do"]
        if kind in small:
            target.ask({**stage.task, **small[kind], "seed": 0}, timeout_s=STAGE_TIMEOUT_S)


def to_dict(comparison: SpeedComparison, model: str) -> dict[str, Any]:
    """Return the report as JSON values, with the measurement of every round."""
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
    """Print the machine's limits, then a table with one row per stage."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console, machine = Console(file=file, highlight=False), comparison.machine
    console.print(
        f"{machine.device}, {machine.threads} threads: reads {machine.read_bytes_per_s / 1e9:.1f} GB/s, "
        f"writes new memory at {machine.first_write_bytes_per_s / 1e9:.1f} GB/s; matrix products in GOP/s"
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
        console.print(f"matrix products: {parts}")
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
        console.print('"takes": the peer\'s time or memory divided by ours; above 1, ours is better.')


def _median(stage: BenchStage, runs: Any) -> str:
    values = runs.seconds.get(stage.name)
    return _number(stage.figure(median(values))) if values else "-"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
