"""A run that another process can kill: score made records. Arguments: base URL, output folder."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.curate.filters.examples import record
from vl2.curate.jobs.client import Endpoint
from vl2.curate.jobs.job import run_job
from vl2.curate.jobs.job_kinds import ScoreWriting
from vl2.curate.jobs.job_outputs import Summary

NUM_RECORDS = 60
CONCURRENCY = 4


def score_all(url: str, out: Path) -> Summary:
    records = (record(f"r-{number}", answer=f"Text number {number}.") for number in range(NUM_RECORDS))
    endpoint = Endpoint(base_url=url, model="fake", concurrency=CONCURRENCY)
    return run_job(ScoreWriting(threshold=4), records, endpoint, out=out, progress=False)


if __name__ == "__main__":
    print(score_all(sys.argv[1], Path(sys.argv[2])).finished)
