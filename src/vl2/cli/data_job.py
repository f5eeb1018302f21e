"""The command `vl2 data job`, which rewrites or scores records with a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from vl2.cli.flags import Number, OptionalFile, OutputFlags, check_locations, print_json
from vl2.errors import UserError

if TYPE_CHECKING:
    from vl2.curate.jobs.job_outputs import Summary
    from vl2.data.record import Record
    from vl2.data.store import Found

Optional = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class DataJob:
    """Ask a model about every record: recaption, regenerate, score, translate, draft-qa.

    OUT/kept.jsonl has the records made, OUT/outcomes.jsonl says of each what became of it, and why. Run again after a
    stop, it asks for nothing that it has. The key is read from OPENAI_API_KEY, or the variable that --key-variable
    names. Without arguments it lists the jobs and their settings.

    Examples:
      vl2 data job recaption photos.tar --endpoint http://127.0.0.1:8000/v1 --model captioner --out recaptioned
      vl2 data job score recaptioned/kept.jsonl --endpoint URL --model judge --out good --set threshold=6
    """

    job: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="JOB", help_behavior_hint="")] = ""
    """what to ask for"""
    locations: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="LOCATION ...", help_behavior_hint="")
    ] = ()
    """files, folders, globs or URLs; .parquet, .tar and .jsonl"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """a new folder, or one of a run that was stopped"""
    endpoint: Annotated[str, tyro.conf.arg(metavar="URL")] = ""
    """up to and including /v1"""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = ""
    """as the endpoint calls it"""
    settings: Annotated[
        tuple[str, ...], tyro.conf.arg(name="set", metavar="NAME=VALUE"), tyro.conf.UseAppendAction
    ] = ()
    """a setting of the job"""
    concurrency: Number = 8
    """requests under way at once"""
    requests_per_minute: Optional = None
    """what the endpoint allows; no bound by default"""
    tokens_per_minute: Optional = None
    """the same in tokens, of questions and answers together"""
    timeout_s: Annotated[float, tyro.conf.arg(metavar="FLOAT")] = 120.0
    """how long an answer may take"""
    key_variable: Annotated[str, tyro.conf.arg(metavar="NAME")] = "OPENAI_API_KEY"
    """the environment variable with the key"""
    ocr_ledger: OptionalFile = None
    """keep the text read off images here, for several jobs"""
    ray: bool = False
    """read text off images on the Ray cluster of RAY_ADDRESS, or one of this machine"""
    output: OutputFlags = field(default_factory=OutputFlags)

    def run(self) -> None:
        from vl2.curate.jobs.client import Endpoint
        from vl2.curate.jobs.job import run_job
        from vl2.curate.jobs.job_kinds import JOBS, job_settings, make_job
        from vl2.data.setting_values import split_setting
        from vl2.data.store import read_records

        if not self.job:
            for name in JOBS:
                print(f"{name:12} {', '.join(job_settings(name))}")
            return
        job = make_job(self.job, dict(map(split_setting, self.settings)))
        check_locations(self.locations)
        for name in ("out", "endpoint", "model"):
            if not getattr(self, name):
                raise UserError(f"the job {self.job} needs --{name}")
        endpoint = Endpoint(
            base_url=self.endpoint,
            model=self.model,
            key_variable=self.key_variable,
            concurrency=self.concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            timeout_s=self.timeout_s,
        )
        _refuse_own_results(self.locations, self.out)
        unread: list[str] = []
        summary = run_job(
            job,
            _good(read_records(*self.locations), unread),
            endpoint,
            out=Path(self.out),
            ocr_ledger=Path(self.ocr_ledger) if self.ocr_ledger else None,
            on="ray" if self.ray else "local",
            progress=sys.stderr.isatty() and not self.output.quiet,
        )
        self._report(summary, unread)

    def _report(self, summary: Summary, unread: list[str]) -> None:
        for problem in unread:
            print(f"vl2: {problem}", file=sys.stderr)
        if self.output.json:
            print_json({"folder": self.out, "unread": len(unread), **summary.to_json()})
        elif not self.output.quiet:
            for why, count in summary.dropped.most_common():
                print(f"{count:>8,} dropped: {why}", file=sys.stderr)
            print(f"{summary.kept:>8,} kept of {summary.seen:,}, in {Path(self.out) / 'kept.jsonl'}", file=sys.stderr)
        if not summary.finished:
            raise UserError("stopped before the end: run it again to go on")


def _refuse_own_results(locations: tuple[str, ...], out: str) -> None:
    """Raise UserError if an input is the file that the job writes."""
    from vl2.data.store.locations import data_file, find_files

    kept = data_file(str(Path(out) / "kept.jsonl"))
    for location in locations:
        if any((file.fs, file.path) == (kept.fs, kept.path) for file in find_files(location)):
            raise UserError(f"{kept.name} is what the job writes, and it cannot be read from: choose another --out")


def _good(found: Iterator[Found], unread: list[str]) -> Iterator[Record]:
    """Yield the records, and append the problems of unreadable ones to `unread`."""
    from vl2.data.store import Problem

    for item in found:
        if isinstance(item, Problem):
            unread.append(str(item))
        else:
            yield item.record
