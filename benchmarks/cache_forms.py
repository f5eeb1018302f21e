"""Speed of decoding with the key-value cache in the model's type and in int8, measured in turns in one process.

    python benchmarks/random_checkpoint.py tiny /data/tiny-random
    python benchmarks/cache_forms.py /data/tiny-random --dtype bfloat16
    python benchmarks/cache_forms.py /data/tiny-random --dtype bfloat16 --weights int4

Both runners share the weights. Every row holds the same prompt of random tokens and then gets random tokens, so that
rows choose different experts. The medians go into docs/performance.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from contextlib import closing

import torch

from vl2.bench.protocol import random_ids
from vl2.infer.engine.scheduler import joint_rows
from vl2.infer.vlm import load
from vl2.model import Cache
from vl2.runtime import Runner, choose_runner

FORMS = ("auto", "int8")


def copy_row(source: Cache, target: Cache) -> None:
    for ours, theirs in zip(target.layers, source.layers, strict=True):
        for t, filled in zip(ours, theirs, strict=True):
            t.copy_(filled)
    target.lengths = list(source.lengths)


def filled_rows(runner: Runner, rows: list[Cache], num_tokens: int) -> None:
    """Read a prompt into the first row, and copy it into the others."""
    language = runner.model.language
    ids_1S = torch.tensor([random_ids(num_tokens, language.model.config.vocab_size, 0)])
    runner.prefill(language.embed(ids_1S), rows[0])
    for row in rows[1:]:
        copy_row(rows[0], row)


def seconds_of_steps(runner: Runner, rows: list[Cache], context: int, steps: int) -> float:
    """Return the seconds of one decoding step, the mean of `steps`."""
    ids = random_ids(len(rows) * steps, runner.model.config.language_config.vocab_size, 1)
    for row in rows:
        row.lengths = [context]
    began = time.perf_counter()
    for step in range(steps):
        runner.decode(ids[step * len(rows) : (step + 1) * len(rows)], rows, joint_rows(len(rows)))
    return (time.perf_counter() - began) / steps


@torch.inference_mode()
def measure(model: str, *, dtype: str, weights: str, num_rows: int, context: int, steps: int, rounds: int) -> None:
    """Print the median seconds of a step for each form, and the median ratio of the rounds."""
    vlm = load(model, device="cpu", dtype=dtype, weights=weights)
    runners = [choose_runner(vlm.model, cache=form) for form in FORMS]
    length = context + steps
    pools = [runner.cache_pool(num_rows, length, num_rows * length) for runner in runners]
    with closing(pools[0]), closing(pools[1]):
        held = [[pool.take(length) for _ in range(num_rows)] for pool in pools]
        for runner, rows in zip(runners, held, strict=True):
            filled_rows(runner, rows, context)
        times: list[list[float]] = []
        for _ in range(rounds):
            times.append([seconds_of_steps(*pair, context, steps) for pair in zip(runners, held, strict=True)])
        for form, seconds, rows in zip(FORMS, zip(*times, strict=True), held, strict=True):
            nbytes = sum(row.nbytes for row in rows)
            print(f"cache {form}: {statistics.median(seconds) * 1e3:.2f} ms a step, {nbytes / 1e9:.3f} GB of cache")
        print(f"auto / int8: {statistics.median(plain / int8 for plain, int8 in times):.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help='"nano", a checkpoint folder or a hub id')
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--weights", default="auto")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--context", type=int, default=1050, help="tokens before the first step")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measure(
        args.model, dtype=args.dtype, weights=args.weights, num_rows=args.rows, context=args.context, steps=args.steps,
        rounds=args.rounds,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
