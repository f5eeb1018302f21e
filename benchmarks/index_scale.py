"""Measure what an index of many records costs: bytes and seconds a record, and the memory of the process that plans.

Made-up counts of 10^6 and 10^7 records are saved, loaded and planned, each in a process of its own. The time to count a
record is measured on drawn records. docs/scale.md extrapolates to 10^9. About two minutes, 2 GB of memory.

    python benchmarks/index_scale.py --records 1000000 10000000
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import vl2
from vl2.data.index import StoreIndex, build_index, settings_checksum
from vl2.data.mixture import Group, Mixture
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.record import CATEGORIES, Record
from vl2.process.processor import Processor
from vl2.synth.catalog import make_source
from vl2.synth.source import generate

USED = ("caption", "text")
COUNTED = 300  # records to count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[10**6, 10**7])
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child)))
        return
    print(f"count tokens and tiles of a drawn record: {counting_seconds() * 1e3:.2f} ms, one core")
    for records in given.records:
        command = [sys.executable, __file__, "--child", str(records)]
        made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(f"{records:,} records: " + ", ".join(f"{name} {value}" for name, value in made.items()))


def load_processor() -> Processor:
    return Processor.from_folder(Path(vl2.__file__).parent / "nano")


def counting_seconds() -> float:
    processor = load_processor()
    records: list[Record] = list(generate(make_source("text_image", {}), COUNTED))
    began = time.perf_counter()
    build_index("drawn", records, processor)
    return (time.perf_counter() - began) / COUNTED


def measure(records: int) -> dict[str, str]:
    """Save, load and plan an index; return bytes and nanoseconds a record, and the growth of peak memory."""
    processor = load_processor()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index.npz"
        began = time.perf_counter()
        write(path, records, processor)
        saved = time.perf_counter() - began
        size = path.stat().st_size
        # The peak of writing must not hide that of planning, so planning runs in a process of its own.
        where = [str(Path(__file__).parent), *sys.path]
        planner = f"import sys; sys.path[:0] = {where!r}; import index_scale; index_scale.plan(sys.argv[1])"
        made = subprocess.run([sys.executable, "-c", planner, str(path)], check=True, capture_output=True, text=True)
    return {
        "file": f"{size / records:.1f} B/record",
        "make and save": f"{saved / records * 1e9:.0f} ns/record",
        **json.loads(made.stdout),
    }


def write(path: Path, records: int, processor: Processor) -> None:
    rng = np.random.default_rng(0)
    tokens = np.clip(rng.lognormal(6.0, 0.7, records), 8, 4000).astype(np.int64)
    StoreIndex(
        name="made-up",
        settings=settings_checksum(processor),
        categories=rng.choice([CATEGORIES.index(category) for category in USED], records),
        num_tokens=tokens,
        num_trained=tokens // 3,
        num_tiles=rng.integers(1, 10, records),
    ).save(path)


def peak_bytes() -> int:
    """Return the peak of this process. `ru_maxrss` would not do: a new process takes it over from its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def plan(path: str) -> None:
    processor = load_processor()
    records = num_records(path)
    before = peak_bytes()
    began = time.perf_counter()
    sources = StoreIndex.load(path, processor, records).sources()
    loaded, loaded_peak = time.perf_counter() - began, peak_bytes()
    mixture = Mixture(groups=(Group(share=1.0, categories=dict.fromkeys(USED, 1.0)),))
    planned = PackPlan(sources, mixture, PlanOptions(packs_per_step=256))
    next(planned.steps())
    total = time.perf_counter() - began
    print(
        json.dumps(
            {
                "load": f"{loaded / records * 1e9:.0f} ns/record",
                "first step": f"{(total - loaded) / records * 1e9:.0f} ns/record",
                "peak after load": f"{(loaded_peak - before) / records:.0f} B/record",
                "peak after first step": f"{(peak_bytes() - before) / records:.0f} B/record",
            }
        )
    )


def num_records(path: str) -> int:
    with np.load(path, allow_pickle=False) as file:
        return int(file["num_tiles"].shape[0])


if __name__ == "__main__":
    main()
