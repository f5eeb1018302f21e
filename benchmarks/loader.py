"""How fast the data loader plans and loads, per core, and how often over it feeds a trainer.

    python benchmarks/loader.py
    python benchmarks/loader.py --small --seq-len 1024 --training training.json
    python benchmarks/loader.py --trainer-samples-per-s 40 --trainer-tiles-per-s 60

The records are made here: JPEG pictures of common sizes with a short answer, and text alone, 70 : 30 by tokens.
Planning is measured on an index of a million records that stand for pretraining. Per core means per second of
processor time, all threads together. "Times the trainer" is the rate over what a trainer takes: give yours, or the file
that benchmarks/training.py has measured; left out, it is a guess for the built-in model on one core.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import vl2
from vl2.data.index import SourceIndex, build_index
from vl2.data.loader import Loader, LoaderOptions
from vl2.data.mixture import PRETRAINING, Mixture
from vl2.data.pack import Packing
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.record import Message, Part, Record, StoredImage
from vl2.grid import num_tiles, num_visual_tokens
from vl2.process.preprocess_config import PreprocessConfig
from vl2.process.processor import Processor
from vl2.process.tiling import candidate_canvases
from vl2.process.tokenizer import Tokenizer

PACKAGE = Path(vl2.__file__).parent
SIZES = ((640, 480), (1024, 768), (800, 1200), (512, 512), (1920, 1080), (300, 900))
WORDS = ("the", "total", "of", "this", "page", "is", "a", "small", "red", "house", "near", "two", "rivers", "and", "42")
MIXTURE = PRETRAINING.only(["caption", "text"])


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Counts over one measured stretch."""

    samples: int
    tiles: int
    tokens: int
    wall_s: float
    core_s: float


def picture(rng: random.Random) -> tuple[bytes, int, int]:
    """Return a JPEG with soft structure, which costs about what a photograph costs to decode."""
    width, height = rng.choice(SIZES)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue(), width, height


def make_record(category: str, number: int) -> Record:
    rng = random.Random(f"{category} {number}")
    images: tuple[StoredImage, ...] = ()
    if category != "text":
        data, width, height = picture(rng)
        images = (StoredImage(data=data, width=width, height=height),)
    answer = " ".join(rng.choices(WORDS, k=rng.randint(20, 300 if images else 900)))
    asked = (*(Part(image=i) for i in range(len(images))), Part(text="Describe it."))
    return Record(
        id=f"{category}-{number}",
        source="generated",
        category=category,
        language="en",
        licence="CC0-1.0",
        messages=(Message(role="user", parts=asked), Message(role="assistant", parts=(Part(text=answer),))),
        images=images,
    )


def make_processor(folder: Path, is_small: bool) -> Processor:
    """Return a processor with the folder's tokenizer, and its tiles or the released ones of 384 px."""
    config = folder if is_small else PACKAGE / "presets"
    return Processor(
        Tokenizer.from_file(folder / "tokenizer.json"), PreprocessConfig.from_file(config / "processor_config.json")
    )


def pretraining_index(num_records: int) -> Iterator[SourceIndex]:
    """Yield one source per category of pretraining, with tokens and tiles like those of real data."""
    rng = np.random.default_rng(0)
    grids = candidate_canvases(1, 9)  # tiles of one pixel: canvases are grids
    tokens = np.array([num_visual_tokens(grid, 14) for grid in grids])
    tiles = np.array([num_tiles(grid) for grid in grids])
    categories = sorted(PRETRAINING.categories)
    for category in categories:
        count = num_records // len(categories)
        has_images = category != "text"
        text = np.clip(rng.lognormal(np.log(200 if has_images else 450), 0.8, count), 8, 4000).astype(np.int64)
        grid = rng.integers(0, len(grids), count)
        yield SourceIndex(
            name=f"some-{category}",
            category=category,
            records=np.arange(count),
            num_tokens=text + tokens[grid] * has_images,
            num_trained=text,
            num_tiles=tiles[grid] * has_images,
        )


def measure_planning(num_records: int, num_windows: int) -> dict[str, str]:
    """Plan windows, the first one apart: it orders the first epoch of every source."""
    plan = PackPlan(list(pretraining_index(num_records)), PRETRAINING, PlanOptions(packs_per_step=256))
    start = time.perf_counter()
    plan.window(0)
    first_s = time.perf_counter() - start
    start = time.perf_counter()
    packs = [pack for window in range(1, num_windows + 1) for pack in plan.window(window)]
    seconds = time.perf_counter() - start
    divisions = [step.divide(64).num_tiles for step in islice(plan.steps(), 8)]
    loads = [max(map(sum, ranks)) * len(ranks) / sum(map(sum, ranks)) for ranks in divisions]
    samples = sum(len(pack.entries) for pack in packs)
    tiles = [pack.num_tiles for pack in packs]
    return {
        "planned samples per second": f"{samples / seconds:,.0f}",
        "first window, with the order of an epoch": f"{first_s:.2f} s of {num_records:,} records",
        "fill": f"{statistics.mean(plan.fill(window) for window in range(1, num_windows + 1)):.4f}",
        "tiles of a pack, mean and most": f"{statistics.mean(tiles):.1f} and {max(tiles)}",
        "most loaded of 64 ranks, 4 packs each": f"{statistics.mean(loads):.3f} times the mean",
    }


def measure_loading(loader: Loader, num_steps: int) -> Speed:
    """Load steps, the first one apart: it starts the threads."""
    steps = iter(loader)
    next(steps)
    wall, core = time.perf_counter(), time.process_time()
    packs = [
        (len(packed.names), len(packed.tiles), packed.num_tokens)
        for step in islice(steps, num_steps)
        for packed in step.packs
    ]
    wall, core = time.perf_counter() - wall, time.process_time() - core
    samples, tiles, tokens = (sum(column) for column in zip(*packs, strict=True))
    return Speed(samples=samples, tiles=tiles, tokens=tokens, wall_s=wall, core_s=core)


def measure_all(
    args: argparse.Namespace, processor: Processor, mixture: Mixture
) -> tuple[float, list[dict[str, float]], Table]:
    """Return records indexed per second, the loading speeds by number of workers, and their table."""
    stores = {name: [make_record(name, i) for i in range(args.records)] for name in sorted(mixture.categories)}
    start = time.perf_counter()
    sources = [s for name, store in stores.items() for s in build_index(name, store, processor).sources()]
    indexed = sum(map(len, stores.values())) / (time.perf_counter() - start)
    plan = PackPlan(sources, mixture, PlanOptions(packs_per_step=4, packing=Packing(seq_len=args.seq_len)))
    table = Table(
        "workers", "samples/s", "tiles/s", "tokens/s", "samples/s per core", "tiles/s per core", "times the trainer"
    )
    found = []
    for workers in args.workers:
        loader = Loader(plan, stores, processor, options=LoaderOptions(num_workers=workers))
        speed = measure_loading(loader, args.steps)
        assert not loader.problems, loader.problems[0].message
        rates = [speed.samples / speed.wall_s, speed.tiles / speed.wall_s, speed.tokens / speed.wall_s]
        per_core = [speed.samples / speed.core_s, speed.tiles / speed.core_s]
        ratio = min(rates[0] / args.trainer_samples_per_s, rates[1] / args.trainer_tiles_per_s)
        found.append(asdict(speed) | {"workers": workers, "times_the_trainer": ratio})
        table.add_row(str(workers), *(f"{rate:,.0f}" for rate in (*rates, *per_core)), f"{ratio:.1f}")
    return indexed, found, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=PACKAGE / "nano", help="where tokenizer.json is")
    parser.add_argument("--small", action="store_true", help="tiles of the folder's own size instead of 384 px")
    parser.add_argument("--records", type=int, default=64, help="generated records per category")
    parser.add_argument("--steps", type=int, default=8, help="steps of 4 packs to measure")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--index-records", type=int, default=1_000_000)
    parser.add_argument("--windows", type=int, default=10, help="windows to plan")
    parser.add_argument("--training", type=Path, help="file of benchmarks/training.py: what its trainer takes")
    parser.add_argument("--trainer-samples-per-s", type=float, default=40.0, help="what the trainer takes")
    parser.add_argument("--trainer-tiles-per-s", type=float, default=60.0, help="what its vision encoder takes")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.training:
        measured = json.loads(args.training.read_text(encoding="utf-8"))["loader"]
        args.trainer_samples_per_s = measured["trainer_samples_per_s"]
        args.trainer_tiles_per_s = measured["trainer_tiles_per_s"]
    torch.set_num_threads(1)
    console = Console(width=120)
    processor = make_processor(args.folder, args.small)
    planning = measure_planning(args.index_records, args.windows)
    for name, value in planning.items():
        console.print(f"{name}: {value}", highlight=False)
    indexed, loading, table = measure_all(args, processor, MIXTURE)
    console.print(f"indexed records per second: {indexed:,.0f}", highlight=False)
    table.title = f"tiles of {processor.config.tile_px} px, sequences of {args.seq_len}"
    console.print(table)
    if args.out:
        found = {"planning": planning, "indexed_records_per_s": indexed, "loading": loading}
        args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
