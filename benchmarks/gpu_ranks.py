"""Decode with the experts divided among the processes of torchrun, one a card, and write OUT/ranks.raw.json.

    torchrun --nproc-per-node 2 benchmarks/gpu_ranks.py --out gpu
    torchrun --nproc-per-node 2 benchmarks/gpu_ranks.py --out gpu --device cpu --smoke   # in small, over gloo

The first process writes a random checkpoint of tiny, or takes the built-in model with `--smoke`, and compares with one
process that runs it alone.
"""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch
from gpu_inference import decode_seconds
from gpu_settings import Row, Settings

from vl2.checkpoint import LoadOptions, load_model
from vl2.checkpoint.random_checkpoint import random_checkpoint
from vl2.checkpoint.resolve import built_in_folder
from vl2.dtypes import DTYPES
from vl2.expert_parallel.follower import follow
from vl2.expert_parallel.leader import Leader
from vl2.runtime import choose_runner
from vl2.train.ranks import Ranks, join, leave


def measure(ranks: Ranks, settings: Settings) -> list[Row]:
    """Return the rates and the memory of the first rank, with its part of the experts and with all."""
    rows = []
    with ExitStack() as stack:
        folder = built_in_folder() if settings.size == "nano" else stack.enter_context(random_checkpoint("tiny", None))
        options = LoadOptions(device=settings.device, dtype=settings.dtype, only_answers=True)
        leader = Leader(ranks)
        stack.callback(leader.stop)
        for name, load in ((f"{ranks.size} ranks", leader.load), ("one", load_model)):
            model = load(folder, options)
            held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
            rows.append(Row(name=f"{settings.size}, {name}: weights of the first rank", value=held / 1e9, unit="GB"))
            runner = choose_runner(model)
            for batch in settings.batches[:3]:
                rate = batch / decode_seconds(runner, batch, settings)
                rows.append(Row(name=f"{settings.size}, {name}, batch {batch}", value=rate, unit="tokens/s"))
            del model, runner
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bfloat16")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    ranks = join(arguments.device)
    if ranks.is_first:
        rows = measure(ranks, Settings.of(ranks.device, DTYPES[arguments.dtype], is_smoke=arguments.smoke))
        text = json.dumps([asdict(row) for row in rows], indent=2)
        (arguments.out / "ranks.raw.json").write_text(text + "\n", encoding="utf-8")
    else:
        follow(ranks)
    leave()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
