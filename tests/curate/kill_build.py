"""Kill builds of a stage at random moments and start them again, as a machine that fails would.

As a program it makes a set in the layout of the hub and shows that a build of it survives any number of kills:

    python -m tests.curate.kill_build --rows 100000 --kills 10
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.datasets.layouts import picture, write_parquet
from vl2.data.store import open_random

FILES = 8
RECIPE = """
shard_records = {shard_records}

[[source]]
name = "charts"
hub = "someone/charts"
from = "charts"
settings = {{columns = {{images = "image", question = "query", answer = "label"}}, category = "table_chart"}}
filter = [{{name = "too_long", limit = 30, unit = "characters"}}]
"""


def hub_row(number: int) -> dict[str, Any]:
    """Return a row of the set. Every 500th has no answer, and every 700th is longer than the filter allows."""
    label = "" if number % 500 == 499 else f"{number}" + " and more" * 4 * (number % 700 == 699)
    return {"image": {"bytes": PICTURE, "path": None}, "query": f"Which row is it? {number}", "label": [label]}


PICTURE = picture((8, 6))


def expected_answers(rows: int) -> list[str]:
    return [f"{number}" for number in range(rows) if number % 500 != 499 and number % 700 != 699]


def write_set(folder: Path, rows: int) -> None:
    """Write rows in FILES files of several row groups, the last file shorter."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    per_file = -(-rows // FILES)
    for file in range(FILES):
        path = folder / "data" / f"train-{file:05d}-of-{FILES:05d}.parquet"
        numbers = range(file * per_file, min((file + 1) * per_file, rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([hub_row(n) for n in numbers]), path, row_group_size=100)
    write_parquet(folder / "data" / "test-00000-of-00001.parquet", [hub_row(0)])


def start(here: Path, to: str) -> subprocess.Popen[bytes]:
    """Start a build. It yields the processor to whoever kills it, who on a busy machine would come too late."""
    build = [sys.executable, "-m", "vl2", "data", "build", "stage.toml", "--to", to, "-q", "--processes", "1"]
    command = ["nice", "-n", "10", *build]
    return subprocess.Popen(command, cwd=here, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.wait() == 0


def num_parts(here: Path, to: str) -> int:
    return len(list((here / to).glob("charts.building/parts/*.json")))


def kill_while_building(here: Path, to: str, rng: random.Random, most_parts: int) -> int:
    """Start a build, wait until it has made up to `most_parts` further parts, kill it, and return how many it made."""
    before = num_parts(here, to)
    wanted = before + rng.randint(1, most_parts)
    process = start(here, to)
    while num_parts(here, to) < wanted:
        assert process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.002)
    time.sleep(rng.random() * 0.01)  # somewhere within a part, which takes some 10 ms: with more, the build may end
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return num_parts(here, to) - before


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def answers(folder: Path) -> list[str]:
    return [record.messages[-1].parts[0].text or "" for record in open_random(str(folder / "table_chart"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shard-records", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        here, rng = Path(temporary), random.Random(given.seed)
        write_set(here / "charts", given.rows)
        (here / "stage.toml").write_text(RECIPE.format(shard_records=given.shard_records))
        began = time.monotonic()
        finish(start(here, "whole"))
        print(f"one run: {time.monotonic() - began:.0f} s, {len(answers(here / 'whole'))} records")
        most = max(1, given.rows // given.shard_records // (given.kills + 1))
        for kill in range(given.kills):
            made = kill_while_building(here, "killed", rng, most)
            print(f"kill {kill + 1}: after {made} further parts, {num_parts(here, 'killed')} in all")
        finish(start(here, "killed"))
        assert answers(here / "killed") == expected_answers(given.rows), "records lost, repeated or out of order"
        assert tree(here / "killed") == tree(here / "whole"), "the files differ"
        print(f"after {given.kills} kills: the same {len(tree(here / 'killed'))} files, byte for byte")


if __name__ == "__main__":
    main()
