"""Go from a random language model and a random SigLIP through the three stages on real records, in small.

    python benchmarks/three_stages.py --nlvr data/nlvr --nlvr-split dev --sroie data/sroie --to stages

It assembles a checkpoint, converts the sets, and trains alignment, pretraining and fine-tuning with `vl2 train`. Each
run is killed at random places and resumed. At the end it checks that every step was made once and that each stage's
loss fell, and asks the exported model about pictures. `--language` and `--vision` take what `vl2 assemble` takes.

With the default steps nothing useful is learned; a CPU needs some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from vl2.assemble import assemble_checkpoint
from vl2.config import ModelConfig
from vl2.data.record import Record
from vl2.data.store import write_records
from vl2.datasets import RowProblem, convert
from vl2.train.recipe import DataOptions, EngineOptions, GroupOptions, ModelOptions, Recipe, RunOptions, SourceOptions
from vl2.train.stage import STAGES

SPLITS = {"nlvr": "train", "sroie": "train"}
SAVE_EVERY = 2
RATES = {"alignment": 1e-3, "pretraining": 1e-3, "fine-tuning": 3e-4}


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What one stage did."""

    stage: str
    steps: int
    killed_after: list[int]
    first_loss: float  # mean over the first quarter of the steps
    last_loss: float  # mean over the last quarter
    minutes: float


def records_of(name: str, folder: Path, split: str, count: int, longest: int) -> Iterator[Record]:
    """Yield the first records of a set, without answers longer than `longest` characters."""
    found = convert(name, folder, split=split)
    kept = (
        one
        for one in found
        if not isinstance(one, RowProblem) and len("".join(p.text or "" for p in one.messages[-1].parts)) <= longest
    )
    return islice(kept, count)


def write_sets(arguments: argparse.Namespace, to: Path) -> dict[str, dict[str, int]]:
    """Write the records of every set that was given, and count them by category."""
    counts: dict[str, dict[str, int]] = {}
    for name in SPLITS:
        folder = getattr(arguments, name)
        if folder is None:
            continue
        split = getattr(arguments, f"{name}_split")
        found = list(records_of(name, folder, split, arguments.records, arguments.longest))
        write_records(iter(found), str(to / f"{name}.tar"))
        counts[name] = {}
        for record in found:
            counts[name][record.category] = counts[name].get(record.category, 0) + 1
    if not counts:
        raise SystemExit("give --nlvr or --sroie: a folder with the set")
    return counts


def recipe_of(stage: str, model: Path, to: Path, counts: Mapping[str, Mapping[str, int]], steps: int) -> Recipe:
    """Return the recipe of a stage: the paper's for tiny, but for its length and rate."""
    categories = sorted({category for found in counts.values() for category in found})
    group = GroupOptions(share=1.0, categories=dict.fromkeys(categories, 1.0))
    context = ModelConfig.from_file(model / "config.json").language_config.max_position_embeddings
    like = STAGES["tiny"][stage]
    return Recipe(
        model=ModelOptions(name=str(model)),
        data=DataOptions(
            sources=tuple(SourceOptions(name=name, path=str(to / f"{name}.tar")) for name in counts),
            groups=(group,),
            window_packs=16,
        ),
        stage=replace(
            like,
            num_tokens=None,
            num_steps=steps,
            warmup_steps=max(1, steps // 10),
            learning_rate=RATES[stage],
            batch_size=4 if not like.is_packed else 1,
            seq_len=min(context, 1024),
        ),
        engine=EngineOptions(compute="float32"),
        run=RunOptions(folder=str(to / stage), save_every_steps=SAVE_EVERY, keep=1, log_every_steps=1000),
    )


def run_killed(recipe: Recipe, rng: random.Random, num_kills: int) -> list[int]:
    """Train a recipe, kill it at random steps and resume it, and return the steps after which it was killed."""
    folder = Path(recipe.run.folder)
    path = folder.with_suffix(".toml")
    path.write_text(recipe.to_toml(), encoding="utf-8")
    steps = recipe.stage.num_steps or 1
    killed = []
    for place in sorted(rng.sample(range(1, steps), min(num_kills, steps - 1))):
        process = subprocess.Popen([sys.executable, "-m", "vl2", "train", str(path), "--resume", "--quiet"])
        while process.poll() is None and len(losses(folder)) < place:
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(len(losses(folder)))
    subprocess.run([sys.executable, "-m", "vl2", "train", str(path), "--resume", "--quiet"], check=True)
    return killed


def losses(folder: Path) -> dict[int, float]:
    """Return the loss of every step in the metrics of a run."""
    if not (folder / "metrics.jsonl").is_file():
        return {}
    found: dict[int, float] = {}
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n") and "loss" in (values := json.loads(line)):
            assert values["step"] not in found, f"step {values['step']} is in the metrics twice"
            found[values["step"]] = values["loss"]
    return found


def train_stage(recipe: Recipe, rng: random.Random, num_kills: int) -> StageResult:
    started = time.perf_counter()
    killed = run_killed(recipe, rng, num_kills)
    curve = losses(Path(recipe.run.folder))
    steps = recipe.stage.num_steps or 1
    assert list(curve) == list(range(1, steps + 1)), f"steps {list(curve)}"
    quarter, values = max(1, steps // 4), list(curve.values())
    return StageResult(
        stage=recipe.stage.name,
        steps=steps,
        killed_after=killed,
        first_loss=statistics.mean(values[:quarter]),
        last_loss=statistics.mean(values[-quarter:]),
        minutes=(time.perf_counter() - started) / 60,
    )


def ask(model: Path, to: Path, name: str) -> list[dict[str, Any]]:
    """Return questions of the first records of a set with the answers wanted and given."""
    import vl2
    from vl2.data.store import open_random
    from vl2.train.evaluation import HeldOut, answer_of

    store = open_random(str(to / f"{name}.tar"))
    records = [store[i] for i in range(min(4, len(store)))]
    vlm = vl2.load(model, device="cpu")
    answers = HeldOut("asked", records, max_new_tokens=12).answers(vlm.model, vlm.processor)
    return [
        {"id": record.id, "wanted": answer_of(record), "given": answer}
        for record, answer in zip(records, answers, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, split in SPLITS.items():
        parser.add_argument(f"--{name}", type=Path, help=f"folder with the set {name}, as vl2 data convert reads it")
        parser.add_argument(f"--{name}-split", default=split)
    parser.add_argument("--language", default="random:nano")
    parser.add_argument("--vision", default="random:nano")
    parser.add_argument("--records", type=int, default=200, help="of each set")
    parser.add_argument("--longest", type=int, default=60, help="characters of an answer; longer records are left out")
    parser.add_argument("--steps", type=int, default=40, help="of each stage")
    parser.add_argument("--kills", type=int, default=2, help="of each stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()
    to: Path = arguments.to
    to.mkdir(parents=True)
    rng = random.Random(arguments.seed)
    model = to / "assembled"
    made = assemble_checkpoint(arguments.language, arguments.vision, str(model), dtype="float32", seed=arguments.seed)
    print(f"assembled: {sum(made.parameters.values()):,} parameters", flush=True)
    counts = write_sets(arguments, to)
    print(f"records: {counts}", flush=True)
    results = []
    for stage in RATES:
        recipe = recipe_of(stage, model, to, counts, arguments.steps)
        results.append(train_stage(recipe, rng, arguments.kills))
        print(results[-1], flush=True)
        model = to / stage / "export"
    asked = [line for name in counts for line in ask(model, to, name)]
    for line in asked:
        print(line, flush=True)
    report = {"records": counts, "stages": [vars(result) for result in results], "asked": asked}
    (to / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    fell = all(result.last_loss < result.first_loss for result in results)
    sys.exit(0 if fell and all(line["given"] for line in asked) else 1)


if __name__ == "__main__":
    main()
