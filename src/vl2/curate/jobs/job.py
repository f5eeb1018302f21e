"""Run a job over records: send a request for each, and write the resulting records in order, or a reason for none.

A run can be stopped at any time by Ctrl-C or `kill -9`. The next run sends only the requests whose answers are not in
the ledger, and writes the same files as an uninterrupted run.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vl2.curate.jobs.asker import Asker, Ledger
from vl2.curate.jobs.client import ChatAnswer, ChatRequest, Client, Endpoint, RequestFailed, Stopped
from vl2.curate.jobs.job_outputs import Outcome, Outputs, Report, Summary, shown_progress
from vl2.curate.jobs.job_protocol import DataJob, Unreadable, Unsuitable
from vl2.curate.jobs.material import Prepared, prepare
from vl2.curate.jobs.ocr import OcrCache
from vl2.data.ray_map import MapBackend
from vl2.data.record import Record
from vl2.errors import UserError

READ_TRIES = 2  # a request whose answer has the wrong form is sent once more, with another seed
_RETRY_TEMPERATURE = 0.7  # at temperature 0 the same answer would come again
_AHEAD = 4  # records in progress per concurrent request, so that a slow request does not block the others
_GRACE_S = 30.0  # time for requests in flight to finish when a run is stopped, because they are already paid for


def run_job(
    job: DataJob,
    records: Iterable[Record],
    endpoint: Endpoint,
    *,
    out: Path,
    root: Path = Path(),
    ocr_ledger: Path | None = None,
    on: MapBackend = "local",
    progress: bool = True,
    total: int | None = None,
    open_client: Callable[[Endpoint], Client] | None = None,
) -> Summary:
    """Run a job and write its files to `out` (see `job_outputs.py`).

    Image paths in records are relative to `root`. Jobs can share OCR results through `ocr_ledger`. With on="ray" OCR
    runs on a cluster. Ctrl-C stops the run after the requests in flight and keeps the results so far. Raise UserError
    if the endpoint answers no requests; run the job again to resume it.
    """

    async def run() -> Summary:
        client = (open_client or _open_client)(endpoint)
        try:
            with ExitStack() as stack:
                answers = stack.enter_context(Ledger(out / "answers.jsonl"))
                ocr = OcrCache(stack.enter_context(Ledger(ocr_ledger or out / "ocr.jsonl"))) if job.needs_ocr else None
                outputs = stack.enter_context(Outputs(out, Summary(job=job.name)))
                report = stack.enter_context(shown_progress(job.name, total, progress))
                pipeline = _Pipeline(job, client, Asker(client, answers), outputs, report)
                stack.enter_context(_on_interrupt(pipeline.stop))
                await pipeline.run(prepare(records, job, root=root, ocr=ocr, on=on))
                outputs.publish()
                return outputs.summary
        finally:
            await client.close()

    return asyncio.run(run())


def _open_client(endpoint: Endpoint) -> Client:
    return Client(endpoint=endpoint)


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C. The second one raises KeyboardInterrupt as usual."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        stop()

    try:
        loop.add_signal_handler(signal.SIGINT, first)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread: Ctrl-C interrupts
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@dataclass
class _InProgress:
    """A record in progress. Its task returns None if the run was stopped before there was an outcome."""

    record: Record
    task: asyncio.Task[Outcome | None]


class _Pipeline:
    """Keeps enough records in progress to use the endpoint's concurrency, and writes their outcomes in order."""

    def __init__(self, job: DataJob, client: Client, asker: Asker, outputs: Outputs, report: Report) -> None:
        self._job = job
        self._client = client
        self._asker = asker
        self._outputs = outputs
        self._report = report
        self._in_progress: deque[_InProgress] = deque()

    def stop(self) -> None:
        """Send no further requests, and finish when the requests in flight are answered."""
        self._client.stop()

    async def run(self, prepared: Iterator[Prepared]) -> None:
        """Process all records. Raise UserError if the endpoint cannot answer any request."""
        ahead = _AHEAD * self._client.endpoint.concurrency
        try:
            # `next` runs in a thread, because reading and OCR of images would block the event loop.
            while not self._client.stopping and (item := await asyncio.to_thread(next, prepared, None)) is not None:
                self._in_progress.append(_InProgress(item.record, asyncio.create_task(self._outcome(item))))
                self._write_finished()
                while len(self._in_progress) >= ahead and not self._client.stopping:
                    await self._wait_for_first()
            while self._in_progress and not self._client.stopping:
                await self._wait_for_first()
            self._outputs.summary.finished = not self._client.stopping
        finally:
            await self._finish()

    async def _wait_for_first(self) -> None:
        """Wait until the oldest record is done or the run is stopped."""
        stopped = asyncio.create_task(self._client.stopped.wait())
        await asyncio.wait({self._in_progress[0].task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._write_finished()

    def _write_finished(self) -> None:
        while self._in_progress and self._in_progress[0].task.done():
            outcome = self._in_progress.popleft().task.result()
            if outcome is not None:
                self._write(outcome)

    async def _finish(self) -> None:
        """Finish or cancel the records in progress, write their outcomes in order, and raise any failure."""
        tasks = [item.task for item in self._in_progress]
        if tasks:
            self._client.stop()
            _, late = await asyncio.wait(tasks, timeout=_GRACE_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        failures = [task.exception() for task in tasks if not task.cancelled() and task.exception() is not None]
        for task in tasks:
            if not task.cancelled() and task.exception() is None and (outcome := task.result()) is not None:
                self._write(outcome)
        self._outputs.summary.asked, self._outputs.summary.reused = self._asker.asked, self._asker.reused
        for failure in failures:
            assert failure is not None
            raise failure

    def _write(self, outcome: Outcome) -> None:
        self._outputs.write(outcome)
        self._report(self._outputs.summary)

    async def _outcome(self, item: Prepared) -> Outcome | None:
        if item.problem:
            return Outcome(source=item.record, made=None, why=item.problem)
        try:
            request = self._job.ask(item.record, item.material)
            return await self._request_and_read(item, request)
        except (Unsuitable, RequestFailed) as reason:
            return Outcome(source=item.record, made=None, why=str(reason))
        except Stopped:
            return None

    async def _request_and_read(self, item: Prepared, request: ChatRequest) -> Outcome:
        why = ""
        for number in range(READ_TRIES):
            answer = await self._asker.ask(_for_attempt(request, number))
            try:
                return self._read_answer(item, answer)
            except Unreadable as reason:
                why = str(reason)
        return Outcome(source=item.record, made=None, why=f"no readable answer in {READ_TRIES} tries: {why}")

    def _read_answer(self, item: Prepared, answer: ChatAnswer) -> Outcome:
        if answer.finish_reason == "length":
            raise Unreadable("the answer was truncated")
        try:
            made = self._job.read(item.record, item.material, answer.text)
        except UserError as error:  # the new record is not valid, for example because a label became empty
            raise Unreadable(str(error)) from None
        return Outcome(source=item.record, made=made.record, why=made.note)


def _for_attempt(request: ChatRequest, number: int) -> ChatRequest:
    if not number:
        return request
    return replace(request, seed=request.seed + number, temperature=max(request.temperature, _RETRY_TEMPERATURE))
