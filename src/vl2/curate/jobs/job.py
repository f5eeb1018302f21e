"""Run a job: records in, questions to the endpoint, records out in the same order, and a reason for each that is not.

A run can be stopped at any time, by Ctrl-C or `kill -9`. The next one asks only for what the ledger lacks and leaves
the same files as a run that was never stopped.
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
from vl2.data.ray_map import Where
from vl2.data.record import Record
from vl2.errors import UserError

READ_TRIES = 2  # an answer in the wrong form is asked for once more, with another seed
_RETRY_TEMPERATURE = 0.7  # at 0 the same answer would come again
_AHEAD = 4  # records begun for each request that may be under way, so that a slow one does not hold up the others
_GRACE_S = 30.0  # for requests under way when a run is stopped: they are paid for


def run_job(
    job: DataJob,
    records: Iterable[Record],
    endpoint: Endpoint,
    *,
    out: Path,
    root: Path = Path(),
    ocr_ledger: Path | None = None,
    on: Where = "local",
    progress: bool = True,
    total: int | None = None,
    open_client: Callable[[Endpoint], Client] | None = None,
) -> Summary:
    """Run a job and leave its files in `out` (see `job_outputs.py`).

    `root` is the folder that paths of the records' images are relative to; `ocr_ledger` lets jobs share what was read
    off images. With on="ray" the reading happens on a cluster. Ctrl-C ends the run after the requests under way and
    keeps what there is. UserError if the endpoint can answer nothing: run again once it can.
    """

    async def run() -> Summary:
        client = (open_client or _open_client)(endpoint)
        try:
            with ExitStack() as stack:
                answers = stack.enter_context(Ledger(out / "answers.jsonl"))
                ocr = OcrCache(stack.enter_context(Ledger(ocr_ledger or out / "ocr.jsonl"))) if job.needs_ocr else None
                outputs = stack.enter_context(Outputs(out, Summary(job=job.name)))
                report = stack.enter_context(shown_progress(job.name, total, progress))
                pump = _Pump(job, client, Asker(client, answers), outputs, report)
                stack.enter_context(_on_interrupt(pump.stop))
                await pump.run(prepare(records, job, root=root, ocr=ocr, on=on))
                outputs.publish()
                return outputs.summary
        finally:
            await client.close()

    return asyncio.run(run())


def _open_client(endpoint: Endpoint) -> Client:
    return Client(endpoint=endpoint)


@contextmanager
def _on_interrupt(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the first Ctrl-C; the second one interrupts as ever."""
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
class _Begun:
    """A record under way. Its task returns None if the run was stopped before there was an outcome."""

    record: Record
    task: asyncio.Task[Outcome | None]


class _Pump:
    """Keep enough records under way, and write their outcomes in order."""

    def __init__(self, job: DataJob, client: Client, asker: Asker, outputs: Outputs, report: Report) -> None:
        self._job = job
        self._client = client
        self._asker = asker
        self._outputs = outputs
        self._report = report
        self._begun: deque[_Begun] = deque()

    def stop(self) -> None:
        """Send nothing more, and end once the requests under way are answered."""
        self._client.stop()

    async def run(self, prepared: Iterator[Prepared]) -> None:
        """Go through all records. UserError if a request cannot be answered by any means."""
        ahead = _AHEAD * self._client.endpoint.concurrency
        try:
            # In a thread: reading images and their text must not hold up the requests.
            while not self._client.stopping and (item := await asyncio.to_thread(next, prepared, None)) is not None:
                self._begun.append(_Begun(item.record, asyncio.create_task(self._outcome(item))))
                self._write_done()
                while len(self._begun) >= ahead and not self._client.stopping:
                    await self._wait_for_first()
            while self._begun and not self._client.stopping:
                await self._wait_for_first()
            self._outputs.summary.finished = not self._client.stopping
        finally:
            await self._wind_up()

    async def _wait_for_first(self) -> None:
        """Wait for the oldest record, or the order to stop."""
        stopped = asyncio.create_task(self._client.stopped.wait())
        await asyncio.wait({self._begun[0].task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        self._write_done()

    def _write_done(self) -> None:
        while self._begun and self._begun[0].task.done():
            outcome = self._begun.popleft().task.result()
            if outcome is not None:
                self._write(outcome)

    async def _wind_up(self) -> None:
        """End what is under way; write what has an outcome, in order; raise what ended the run."""
        tasks = [begun.task for begun in self._begun]
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
            return await self._answered(item, request)
        except (Unsuitable, RequestFailed) as reason:
            return Outcome(source=item.record, made=None, why=str(reason))
        except Stopped:
            return None

    async def _answered(self, item: Prepared, request: ChatRequest) -> Outcome:
        why = ""
        for number in range(READ_TRIES):
            answer = await self._asker.ask(_varied(request, number))
            try:
                return self._read(item, answer)
            except Unreadable as reason:
                why = str(reason)
        return Outcome(source=item.record, made=None, why=f"no readable answer in {READ_TRIES} tries: {why}")

    def _read(self, item: Prepared, answer: ChatAnswer) -> Outcome:
        if answer.finish_reason == "length":
            raise Unreadable("the answer was cut off")
        try:
            made = self._job.read(item.record, item.material, answer.text)
        except UserError as error:  # the record made of it is none: an object's label became empty, for instance
            raise Unreadable(str(error)) from None
        return Outcome(source=item.record, made=made.record, why=made.note)


def _varied(request: ChatRequest, number: int) -> ChatRequest:
    if not number:
        return request
    return replace(request, seed=request.seed + number, temperature=max(request.temperature, _RETRY_TEMPERATURE))
