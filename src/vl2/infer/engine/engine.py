"""The thread that owns the model. Any thread may submit jobs; a callback in this thread delivers the outputs."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

from vl2.errors import UserError
from vl2.infer.engine.request import Job, Output, Task
from vl2.infer.engine.scheduler import Scheduler

LOGGER = logging.getLogger("vl2.infer.engine")
ENGINE_THREAD = "vl2-engine"

Deliver = Callable[[Sequence[tuple[Task, Output]]], None]


class EngineFull(UserError):
    """Too many requests are waiting. A later attempt may succeed."""


class EngineStopped(UserError):
    """The engine is stopping and accepts no more jobs."""


class Engine:
    """Run a scheduler in its own thread until `stop` is called. Other threads submit and cancel tasks."""

    def __init__(self, scheduler: Scheduler, deliver: Deliver) -> None:
        """Create the engine without starting it.

        `deliver` is called in the engine's thread with the outputs of each step. It must not block.
        """
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
        """Queue a job and return its task.

        Raise UserError if the job can never run, EngineFull if too many requests are waiting, and EngineStopped after
        `stop`.
        """
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
        """Drop a task before the next step. Do nothing if it has ended already."""
        with self._wake:
            self._cancelled.append(task)
            self._wake.notify()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Drop all work and end the thread. Every unfinished task gets an output with an error.

        Wait at most `timeout_s` seconds. If a step takes longer, the thread ends after the step or with the process.
        """
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            self.scheduler.prepare()
        except Exception as error:  # the requests will meet it again, and each will be told
            LOGGER.warning("vl2: the engine could not prepare for its first request: %s", error)
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
        """Wait for work, pass new and canceled tasks to the scheduler, and return False when the engine stops."""
        with self._wake:
            while not (self._inbox or self._cancelled or self._is_stopping or self.scheduler.has_work):
                self._wake.wait()
            while self._inbox:
                self.scheduler.add(self._inbox.popleft())
            while self._cancelled:
                self.scheduler.cancel(self._cancelled.popleft())
            return not self._is_stopping
