"""Run a large size in int4 within a bound of memory: tokens per second, peak memory, what came from the disk.

    python benchmarks/big_sizes.py small /data/small4                     # 9.7 GB, random weights, deleted afterwards
    python benchmarks/big_sizes.py base /data/base4 --memory all 12GB 8GB --keep

The checkpoint is written in int4 directly, so the plain one need not fit on the disk. Every bound is measured in a
process of its own, on drawn tokens, so that experts are visited evenly: the worst case for paging. "cached" lets the
system keep what a process lets go, as it does where others leave memory free; "uncached" gives these pages back at
once, so that an expert that is absent is read from the disk: a machine that has no more memory than the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vl2.bench.protocol import peak_bytes
from vl2.checkpoint.folder import Checkpoint
from vl2.checkpoint.load import read_model
from vl2.checkpoint.machine_memory import parse_bytes
from vl2.checkpoint.memory_plan import MemoryPlan
from vl2.checkpoint.pages import MappedFile
from vl2.checkpoint.paging import ExpertPager
from vl2.checkpoint.policy import Policy
from vl2.checkpoint.random_checkpoint import write_random_checkpoint
from vl2.config import PRESETS
from vl2.infer.prefill import prefill
from vl2.model import VL2, Cache
from vl2.runtime import choose_runner

CONTEXT = 64  # tokens before the first that is timed
WARM_UP = 8  # tokens that are not timed
ALL = "all"


class UncachedFile(MappedFile):
    """What is let go leaves the system's cache too, so that it is read from the disk when it is next touched."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def evict(self, offset: int, nbytes: int) -> None:
        super().evict(offset, nbytes)
        os.posix_fadvise(self._descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def open_within(folder: Path, memory: str, is_cached: bool) -> tuple[VL2, ExpertPager | None]:
    checkpoint = Checkpoint.of(folder)
    assert checkpoint.quantization is not None, f"{folder} is not quantized"
    expert_bytes = None
    if memory != ALL:
        plan = MemoryPlan.of(checkpoint.config, checkpoint.quantization.scheme, CONTEXT + 256)
        expert_bytes = plan.experts_within(parse_bytes(memory))
    policy = Policy(
        dtype=checkpoint.dtype, device=torch.device("cpu"), in_place="everything", expert_bytes=expert_bytes
    )
    model, views = read_model(checkpoint, policy, file_kind=MappedFile if is_cached else UncachedFile)
    if expert_bytes is None:
        return model, None
    pager = ExpertPager(model, views, expert_bytes)
    pager.attach()
    return model, pager


@torch.inference_mode()
def measure(folder: Path, memory: str, num_tokens: int, is_cached: bool) -> dict[str, Any]:
    """Load and decode in this process."""
    start = time.perf_counter()
    model, pager = open_within(folder, memory, is_cached)
    load_s = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    language = model.config.language_config
    ids = torch.randint(language.vocab_size, (CONTEXT + WARM_UP + num_tokens,), generator=generator)
    cache = Cache.allocate(language, 1, len(ids), dtype=model.dtype, device=model.device)
    runner = choose_runner(model)
    prefill(runner, model.language.embed(ids[None, :CONTEXT]), cache)
    for token in ids[CONTEXT : CONTEXT + WARM_UP].tolist():
        runner.decode([token], [cache], 1)
    disk, misses = _read_from_disk(), pager.misses if pager else 0
    start = time.perf_counter()
    for token in ids[CONTEXT + WARM_UP :].tolist():
        runner.decode([token], [cache], 1)
    seconds = time.perf_counter() - start
    chosen = language.num_experts_per_tok or 0
    layers = sum(language.is_moe_layer(i) for i in range(language.num_hidden_layers))
    return {
        "memory": memory,
        "cached": is_cached,
        "load_s": load_s,
        "tokens_per_s": num_tokens / seconds,
        "peak_gb": peak_bytes() / 1e9,
        "absent_share": (pager.misses - misses) / (num_tokens * layers * chosen) if pager else 0.0,
        "disk_mb_per_token": (_read_from_disk() - disk) / num_tokens / 1e6,
        "threads": torch.get_num_threads(),
    }


def _read_from_disk() -> int:
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=PRESETS)
    parser.add_argument("folder", type=Path, help="written if it is not there")
    parser.add_argument("--memory", nargs="+", default=[ALL], help='bounds such as 8GB, or "all"')
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--uncached", action="store_true", help="measure each bound without the system's cache too")
    parser.add_argument("--keep", action="store_true", help="do not delete the folder")
    parser.add_argument("--one", choices=["cached", "uncached"], help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.folder, args.memory[0], args.tokens, args.one == "cached")))
        return 0
    was_there = args.folder.exists()
    if not was_there:
        start = time.perf_counter()
        write_random_checkpoint(args.size, args.folder, weights="int4")
        print(f"written in {time.perf_counter() - start:.0f} s", file=sys.stderr)
    try:
        for memory in args.memory:
            for way in ("cached", "uncached") if args.uncached and memory != ALL else ("cached",):
                own = (str(args.folder), "--memory", memory, "--tokens", str(args.tokens), "--one", way)
                command = [sys.executable, __file__, args.size, *own]
                print(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True)
    finally:
        if not was_there and not args.keep:
            shutil.rmtree(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
