"""Draw records of every synthetic source, plan ten million tokens of them, and compare with what was asked.

    python benchmarks/realized_mixture.py --tokenizer tokenizer.json              # drawn records alone
    python benchmarks/realized_mixture.py --tokenizer tokenizer.json set/*.parquet

Prints the share of tokens of each category, asked and realised, and how full the sequences are. Tiles are those of the
released sizes (384 px); give the tokenizer of a released checkpoint, or leave it out for the built-in one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections import Counter
from importlib import resources
from pathlib import Path

from vl2.checkpoint.resolve import built_in_folder
from vl2.data.index import RecordStore, SourceIndex, build_index
from vl2.data.mixture import FINE_TUNING
from vl2.data.pack import Packing
from vl2.data.pack_plan import PackPlan, PlanOptions
from vl2.data.store import open_random
from vl2.process.processor import Processor
from vl2.synth.catalog import SOURCES
from vl2.synth.source import generate

SLOW = ("plot_code", "web_page")  # they run a program for every record


def released_processor(tokenizer: Path) -> Processor:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(str(resources.files("vl2") / "presets")) / "processor_config.json", folder)
        shutil.copy(tokenizer, Path(folder) / "tokenizer.json")
        return Processor.from_folder(folder)


def stores(locations: list[str], count: int) -> dict[str, RecordStore]:
    """Return the drawn records of each source, and the stores given."""
    drawn: dict[str, RecordStore] = {
        name: list(generate(kind(), count // 8 if name in SLOW else count, seed=1, processes=2))
        for name, kind in SOURCES.items()
    }
    return drawn | {location: open_random(location) for location in locations}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("locations", nargs="*", help="stores of records to add")
    parser.add_argument("--tokenizer", type=Path, default=built_in_folder() / "tokenizer.json")
    parser.add_argument("--count", type=int, default=200, help="records drawn of each source")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--max-tiles", type=int, default=24, help="of a sequence")
    arguments = parser.parse_args()

    processor = released_processor(arguments.tokenizer)
    sources: list[SourceIndex] = []
    for name, records in stores(arguments.locations, arguments.count).items():
        sources += build_index(name, records, processor).sources()
    categories = {source.category for source in sources} & FINE_TUNING.categories
    sources = [source for source in sources if source.category in categories]
    packing = Packing(seq_len=4096, max_tiles=arguments.max_tiles)
    plan = PackPlan(sources, FINE_TUNING.only(categories), PlanOptions(packs_per_step=64, packing=packing))

    category_of = {(s.name, int(record)): s.category for s in plan.sources for record in s.records}
    tokens: Counter[str] = Counter()
    places = 0
    for step in plan.steps():
        for pack in step.packs:
            places += packing.seq_len
            for entry in pack.entries:
                tokens[category_of[entry.source, entry.record]] += entry.num_tokens
        if tokens.total() > arguments.tokens:
            break
    asked: Counter[str] = Counter()
    for source, share in zip(plan.sources, plan.shares, strict=True):
        asked[source.category] += share  # type: ignore[assignment]  # shares are parts of one
    print(f"{'category':24} {'asked':>8} {'realised':>9}")
    for category, share in asked.most_common():
        print(f"{category:24} {share:8.3%} {tokens[category] / tokens.total():9.3%}")
    worst = max(abs(tokens[category] / tokens.total() - share) for category, share in asked.items())
    print(f"{tokens.total():,} tokens, furthest off {100 * worst:.3f} percentage points")
    print(f"{tokens.total() / places:.4f} of the places of a sequence are full")


if __name__ == "__main__":
    main()
