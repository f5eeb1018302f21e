"""Run a batch job: answer each item once and write one line for it, in the order of the items.

A later run of the same job continues after the lines that are in the output, also after `kill -9`. The settings of a
job are stored in a file beside the output, so that a run with other settings is refused. Answers are decoded together
by continuous batching, so an item's line may have to wait for the lines of items before it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vl2.batch_job.exports import draw_answer, file_stems
from vl2.batch_job.item import BatchItem, LineFile, answer_line, check_unique, error_line
from vl2.errors import UserError
from vl2.files import write_whole
from vl2.infer.constraint import Constraint, check_whole
from vl2.infer.engine.request import Job, Task
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.reply import Reply
from vl2.infer.sequence import Event
from vl2.infer.vlm import VLM, ReplyBuilder
from vl2.process.image import open_image
from vl2.resumable_log import clear

READ_AHEAD = 2  # items held in memory per sequence that is decoded at once; small, because images are large


@dataclass(frozen=True, kw_only=True)
class BatchProgress:
    """Counts of a job's items."""

    total: int
    done_before: int  # by earlier runs
    done: int = 0  # by this run, failures included
    failed: int = 0
    repeating: int = 0  # answers that were stopped because they repeated themselves
    new_tokens: int = 0

    @property
    def num_left(self) -> int:
        return self.total - self.done_before - self.done


Report = Callable[[BatchProgress], None]


@dataclass(kw_only=True)
class _Pending:
    """An item that has been read, and whose line is not yet written."""

    item: BatchItem
    line: dict[str, Any] | None = None  # set when the item is answered or has failed
    builder: ReplyBuilder | None = None
    constraint: Constraint | None = None
    last_image: Image.Image | None = None  # kept only for drawing
    finish_reason: str | None = None
    new_tokens: int = 0


@dataclass(kw_only=True)
class _BatchRun:
    """One run over the items that no earlier run has answered."""

    vlm: VLM
    file: LineFile
    pictures: Mapping[str, Path]  # item id -> file for the image with drawn boxes; empty if none are wanted
    report: Report
    model: str
    progress: BatchProgress
    pending: deque[_Pending] = field(default_factory=deque)  # in the order of the items

    def run(self, items: Sequence[BatchItem]) -> None:
        limits = EngineLimits(
            max_num_seqs=self.vlm.limits.max_num_seqs,
            prefill_chunk=self.vlm.limits.prefill_chunk,
            max_context=self.vlm.limits.max_context,
            cache_tokens=self.vlm.limits.max_num_seqs * self.vlm.limits.max_context,
        )
        scheduler = Scheduler(self.vlm.runner, self.vlm.processor.tokenizer, limits, reuse=self.vlm.reuse)
        with closing(scheduler):
            self._answer(scheduler, deque(items))

    def _answer(self, scheduler: Scheduler, waiting: deque[BatchItem]) -> None:
        working: dict[Task, _Pending] = {}
        while waiting or self.pending:
            while waiting and len(self.pending) < READ_AHEAD * scheduler.limits.max_num_seqs:
                self._begin(waiting.popleft(), scheduler, working)
            for task, output in scheduler.step() if scheduler.has_work else ():
                work = working[task]
                if output.error is not None:
                    self._fail(work, output.error)
                elif work.builder is not None:
                    work.new_tokens += 1
                    work.finish_reason = output.finish_reason
                    work.builder.add(Event(request=0, token_id=output.token_id, piece=output.piece,
                                           finish_reason=output.finish_reason))  # fmt: skip
                    if output.finish_reason is not None:
                        self._end(work, work.builder.build())
                if output.is_last:
                    del working[task]
            self._write_finished()

    def _end(self, work: _Pending, reply: Reply) -> None:
        try:
            check_whole(work.constraint, reply.text, reply.finish_reason, reply.usage.completion_tokens)
        except UserError as error:
            self._fail(work, error)
            return
        work.line = answer_line(work.item, reply, self.model)
        if work.last_image is not None:
            draw_answer(self.pictures[work.item.id], reply, work.last_image)

    def _begin(self, item: BatchItem, scheduler: Scheduler, working: dict[Task, _Pending]) -> None:
        work = _Pending(item=item)
        self.pending.append(work)
        try:
            request = item.read()
            images = request.images
            if item.id in self.pictures and images:
                work.last_image = open_image(images[-1], self.vlm.processor.image_options)
            sample = self.vlm.processor.encode(request.turns, name=item.id)
            task = scheduler.make_task(Job(sample=sample, options=request.options))
        except UserError as error:
            self._fail(work, error)
            return
        work.builder = ReplyBuilder(sample, self.vlm.processor.kind)
        work.constraint = request.options.constraint
        working[task] = work
        scheduler.add(task)

    def _fail(self, work: _Pending, error: Exception) -> None:
        if not isinstance(error, UserError):
            raise error  # a bug of ours: stop the job, because all other items might fail the same way
        work.line = error_line(work.item, error)
        work.finish_reason = None

    def _write_finished(self) -> None:
        while self.pending and self.pending[0].line is not None:
            work = self.pending[0]
            assert work.line is not None
            self.file.append(work.line)
            self.pending.popleft()
            before = self.progress
            self.progress = BatchProgress(
                total=before.total,
                done_before=before.done_before,
                done=before.done + 1,
                failed=before.failed + (work.finish_reason is None),
                repeating=before.repeating + (work.finish_reason == "repetition"),
                new_tokens=before.new_tokens + work.new_tokens,
            )
            self.report(self.progress)


def run_batch(
    vlm: VLM,
    items: Sequence[BatchItem],
    out: Path,
    *,
    draw: Path | None = None,
    model: str = "vl2",
    report: Report = lambda progress: None,
) -> BatchProgress:
    """Answer the items that have no line in `out`, and append one JSON line for each.

    If `draw` is given, images with drawn boxes are written into that folder. Raise UserError if `out` holds lines of
    another job, or if the output cannot be written, as on a full disk; then the same call continues from there.
    """
    check_unique(items)
    with LineFile(out) as file:
        foreign = file.keys - {item.id for item in items}
        if foreign:
            raise UserError(f"{out} belongs to another job: this one has no item {sorted(foreign)[0]!r}")
        left = [item for item in items if item.id not in file.keys]
        progress = BatchProgress(total=len(items), done_before=len(items) - len(left))
        report(progress)
        stems = {} if draw is None else file_stems(item.id for item in items)
        pictures = {name: draw / f"{stem}.png" for name, stem in stems.items()} if draw is not None else {}
        job = _BatchRun(vlm=vlm, file=file, pictures=pictures, report=report, model=model, progress=progress)
        try:
            if draw is not None:
                draw.mkdir(parents=True, exist_ok=True)
            job.run(left)
            file.sync()
        except OSError as error:
            done = job.progress.done_before + job.progress.done
            raise UserError(
                f"cannot write {error.filename or out}: {error.strerror}; {done} of {len(items)} are done, and the "
                "same command continues from there"
            ) from None
        return job.progress


Settings = Mapping[str, str]


def check_settings(out: Path, settings: Settings) -> None:
    """Raise UserError if `out` has answers of a job with other settings, or was not written by a job."""
    path = _settings_path(out)
    if not _has_answers(out):
        return
    if not path.exists():
        raise UserError(f"{out} exists and is not the output of a job that can be continued: name another file")
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise UserError(f"{path} cannot be read: remove it and {out} to start over") from None
    for name in before:
        if before[name] != settings.get(name):
            raise UserError(
                f"{out} was begun with {name} {before[name]}, now it is {settings.get(name, 'not set')}: "
                "name another output, or give --fresh to start over"
            )


def store_settings(out: Path, settings: Settings) -> None:
    """Store the settings of a new job. If the job is continued, raise UserError if its settings differ."""
    check_settings(out, settings)
    if not (_has_answers(out) and _settings_path(out).exists()):
        write_whole(_settings_path(out), json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def remove_job(out: Path) -> None:
    """Remove a job's answers and settings. Raise UserError if the job is running, or if no job wrote `out`."""
    if _has_answers(out) and not _settings_path(out).exists():
        raise UserError(f"{out} exists and is not the output of a job, so --fresh does not clear it: use another name")
    if out.exists():
        clear(out)
    _settings_path(out).unlink(missing_ok=True)


def _settings_path(out: Path) -> Path:
    return out.with_name(out.name + ".job")


def _has_answers(out: Path) -> bool:
    return out.exists() and out.stat().st_size > 0
