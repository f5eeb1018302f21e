"""The thread that owns the model: jobs from any thread, outputs in order, nothing lost when it stops."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest

from tests.infer.talkative import load_talkative
from vl2.infer.engine.engine import Engine, EngineFull, EngineStopped
from vl2.infer.engine.request import Job, Output, Task
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM


@pytest.fixture(scope="module")
def nano() -> VLM:
    return load_talkative()


class Collected:
    """What an engine delivers."""

    def __init__(self) -> None:
        self.outputs: dict[Task, list[Output]] = defaultdict(list)
        self.ended: dict[Task, threading.Event] = defaultdict(threading.Event)

    def __call__(self, outputs: Sequence[tuple[Task, Output]]) -> None:
        for task, output in outputs:
            self.outputs[task].append(output)
            if output.is_last:
                self.ended[task].set()

    def wait(self, task: Task) -> list[Output]:
        assert self.ended[task].wait(30)
        return self.outputs[task]


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def engine(nano: VLM, collected: Collected) -> Iterator[Engine]:
    limits = EngineLimits(max_num_seqs=4, max_context=1024, cache_tokens=2048, max_waiting=3)
    made = Engine(Scheduler(nano.runner, nano.processor.tokenizer, limits), collected)
    yield made
    made.stop()


def hello(vlm: VLM, max_new_tokens: int = 8) -> Job:
    sample = vlm.processor.encode([{"role": "user", "content": "Tell me a story."}])
    return Job(sample=sample, options=GenerateOptions(max_new_tokens=max_new_tokens))


def test_jobs_from_many_threads_are_all_answered_alike(nano: VLM, engine: Engine, collected: Collected) -> None:
    engine.start()
    tasks: list[Task] = []
    threads = [threading.Thread(target=lambda: tasks.append(engine.submit(hello(nano)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers = [[output.token_id for output in collected.wait(task)] for task in tasks]
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 8


def test_a_full_queue_is_said_to_be_full(nano: VLM, engine: Engine) -> None:
    for _ in range(3):  # it was not started: nothing leaves the queue
        engine.submit(hello(nano))
    with pytest.raises(EngineFull, match="3 requests wait already"):
        engine.submit(hello(nano))


def test_a_cancelled_job_is_no_longer_worked_on(nano: VLM, engine: Engine, collected: Collected) -> None:
    engine.start()
    gone = engine.submit(hello(nano, 900))
    engine.cancel(gone)
    collected.wait(engine.submit(hello(nano)))
    assert not engine.scheduler.has_work
    assert len(collected.outputs[gone]) < 900


def test_stopping_ends_what_is_under_way_with_an_error(nano: VLM, engine: Engine, collected: Collected) -> None:
    engine.start()
    task = engine.submit(hello(nano, 900))
    engine.stop()
    assert isinstance(collected.wait(task)[-1].error, EngineStopped)
    with pytest.raises(EngineStopped, match="stopping"):
        engine.submit(hello(nano))
