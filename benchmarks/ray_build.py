"""Measure what passes through the driver when a stage is built on Ray: its memory, and the bytes of tasks and results.

A set in the layout of the hub is made and built on a Ray cluster of this machine, small and ten times as large. What
the driver sends and receives must not grow with the pictures. About two minutes; needs `pip install ".[data,ray]"`.

    python benchmarks/ray_build.py --rows 2000 20000
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

RECIPE = """
shard_records = 500
[[source]]
name = "set"
hub = "someone/set"
from = "set"
settings = {columns = {images = "image", question = "query", answer = "label"}, category = "vqa"}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--processes", type=int, default=0, help="build in processes here instead of on Ray")
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        measure(given.child, given.processes)
        return
    for rows in given.rows:
        more = ["--child", str(rows), "--processes", str(given.processes)]
        subprocess.run([sys.executable, __file__, *more], check=True)


def write_set(folder: Path, rows: int) -> int:
    """Write rows with pictures of about 20 KB that do not compress, and return the bytes of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    folder.mkdir()
    stream = io.BytesIO()
    Image.frombytes("RGB", (80, 80), os.urandom(80 * 80 * 3)).save(stream, "PNG")
    table = {
        "image": [{"bytes": stream.getvalue(), "path": None}] * rows,
        "query": [f"Which row? {row}" for row in range(rows)],
        "label": [str(row) for row in range(rows)],
    }
    path = folder / "train.parquet"
    pq.write_table(pa.table(table), path, row_group_size=250, use_dictionary=False, compression="none")
    return path.stat().st_size


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def measure(rows: int, processes: int) -> None:
    from vl2.curate import stage_build
    from vl2.curate.stage_recipe import read_recipe
    from vl2.data import ray_map

    moved = {"tasks": 0, "results": 0}

    def counted(function: Callable[[Any], Any], items: Iterable[Any], *rest: Any, **more: Any) -> Iterator[Any]:
        items = list(items)
        moved["tasks"] += sum(len(pickle.dumps(item)) for item in items)
        for result in ray_map.map_in_order(function, items, *rest, **more):
            moved["results"] += len(pickle.dumps(result))
            yield result

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        size = write_set(Path("set"), rows)
        # The set is written by this process, so that its peak is known before the build.
        Path("stage.toml").write_text(RECIPE, encoding="utf-8")
        how = stage_build.BuildOptions(processes=processes) if processes else stage_build.BuildOptions(on="ray")
        if not processes:
            import ray

            ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", object_store_memory=100 * 2**20)
        stage_build.map_in_order = counted
        warm = peak_mb()
        (report,) = stage_build.build_stage(read_recipe("stage.toml"), Path("out"), load=no_processor, how=how)
        assert report.kept == rows, report
        written = sum(path.stat().st_size for path in Path("out").rglob("*.parquet"))
        print(
            f"{rows:,} rows, {size / 1e6:.0f} MB read and {written / 1e6:.0f} MB written on workers; by the driver "
            f"{moved['tasks']:,} B of tasks and {moved['results']:,} B of results; its peak grew by "
            f"{peak_mb() - warm:.0f} MB"
        )


def no_processor() -> Any:
    raise AssertionError("this recipe needs no processor")


if __name__ == "__main__":
    main()
