"""The thread that owns the model: jobs go in from any thread, outputs come back through a callback of the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from vl2.errors import UserError
from vl2.infer.engine.request import Job, Output, Task
from vl2.infer.engine.scheduler import Scheduler

ENGINE_THREAD = "vl2-engine"

Deliver = Callable[[Sequence[tuple[Task, Output]]], None]


class EngineFull(UserError):
    """Too many requests wait already; a later try may succeed."""


class EngineStopped(UserError):
    """The engine takes nothing any more."""


class Engine:
    """Runs a scheduler until it is stopped."""

    def __init__(self, scheduler: Scheduler, deliver: Deliver) -> None:
        """`deliver` is called in the engine's thread with what a step gave; it must return at once."""
        self.scheduler = scheduler
        self._deliver = deliver
        self._inbox: deque[Task] = deque()
        self._cancelled: deque[Task] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name=ENGINE_THREAD, daemon=True)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    @property
    def num_waiting(self) -> int:
        return len(self._inbox) + self.scheduler.num_waiting

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Task:
        """Queue a job. UserError where it can never run, EngineFull where too many wait."""
        task = self.scheduler.make_task(job)
        with self._wake:
            if self._is_stopping:
                raise EngineStopped("the server is stopping")
            if self.num_waiting >= self.scheduler.limits.max_waiting:
                raise EngineFull(f"{self.num_waiting} requests wait already: try again later")
            self._inbox.append(task)
            self._wake.notify()
        return task

    def cancel(self, task: Task) -> None:
        """Stop working on a task before the next step; one that has ended stays so."""
        with self._wake:
            self._cancelled.append(task)
            self._wake.notify()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Drop all work and end the thread; what was under way gets an output with an error.

        A step that takes longer is not waited for: its thread ends after it, or with the process.
        """
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._take_orders():
            outputs = self.scheduler.step()
            if outputs:
                self._deliver(outputs)
        failure = EngineStopped("the server stopped before the answer was complete")
        left = [*self.scheduler.drop_all(), *self._inbox]
        self.scheduler.close()
        if left:
            self._deliver([(task, Output(error=failure)) for task in left])

    def _take_orders(self) -> bool:
        """Wait for work, take it in, and return whether to go on."""
        with self._wake:
            while not (self._inbox or self._cancelled or self._is_stopping or self.scheduler.has_work):
                self._wake.wait()
            while self._inbox:
                self.scheduler.add(self._inbox.popleft())
            while self._cancelled:
                self.scheduler.cancel(self._cancelled.popleft())
            return not self._is_stopping
