"""Guessed tokens change the time of an answer and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vl2
from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.engine.request import Job
from vl2.infer.engine.scheduler import EngineLimits, Scheduler, Totals
from vl2.infer.sampling import GenerateOptions
from vl2.infer.speculation import MAX_STEP_ROWS, DraftToken, StepTimes, TextLookup, plan_step
from vl2.infer.vlm import VLM
from vl2.kernels import load_kernels

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_kernels = pytest.mark.skipif(load_kernels() is None, reason="no compiler here, and no kernels were built before")


@pytest.fixture(scope="module")
def nano() -> VLM:
    return vl2.load("nano", dtype="bfloat16")


class Eager(StepTimes):
    """Believe that a step costs the same whatever its rows, so that every guess is tried."""

    def of(self, rows: int) -> float:
        return 1.0


def answer(vlm: VLM, question: str, image: str, *, eager: bool = True, **options: Any) -> tuple[list[int], Totals]:
    """Return the tokens of an answer and what the scheduler counted."""
    content = [{"type": "image", "image": str(EXAMPLES / image)}, {"type": "text", "text": question}]
    sample = vlm.processor.encode([{"role": "user", "content": content}])
    scheduler = Scheduler(vlm.runner, vlm.processor.tokenizer, EngineLimits(max_num_seqs=4))
    if eager:
        scheduler._step_times = Eager()
    scheduler.add(scheduler.make_task(Job(sample=sample, options=GenerateOptions(**options))))
    ids = []
    while scheduler.has_work:
        for _, output in scheduler.step():
            assert output.error is None, output.error
            ids.append(output.token_id)
    scheduler.close()
    return ids, scheduler.totals


READ = "Read the text in the picture."
SCHEMA = {"type": "object", "properties": {"total": {"type": "string"}, "names": {"type": "array"}}}


@needs_kernels
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.5, "seed": 3},
        {"temperature": 0.7, "seed": 1, "top_p": 0.9, "repetition_penalty": 1.3},
        {"frequency_penalty": 1.0, "no_repeat_ngram_size": 3},
        {"max_repeats": 3},
        {"stop": ["a"]},
        {"max_new_tokens": 7},
        {"constraint": JsonSchema(SCHEMA)},
        {"constraint": WellFormedBoxes(only_boxes=True)},
    ],
    ids=str,
)
@pytest.mark.parametrize("prediction", ["", "Harbor at dawn, and then something else entirely", "the the the the"])
def test_the_answer_is_token_for_token_the_one_without_guesses(
    nano: VLM, options: dict[str, Any], prediction: str
) -> None:
    options = {"max_new_tokens": 60, **options}
    plain, counted = answer(nano, READ, "line.png", speculation=False, **options)
    assert counted.draft_tokens == 0
    ids, _ = answer(nano, READ, "line.png", prediction=prediction, **options)
    assert ids == plain


@needs_kernels
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "seed": 1}], ids=str)
def test_with_a_cache_in_int8_the_answer_is_the_one_without_guesses_too(options: dict[str, Any]) -> None:
    vlm = vl2.load("nano", dtype="bfloat16", cache="int8")
    tokenizer = vlm.processor.tokenizer
    options = {"max_new_tokens": 30, "logit_bias": {tokenizer.eos_id: -100}, **options}
    plain, _ = answer(vlm, READ, "line.png", speculation=False, **options)
    expected = f"{tokenizer.decode(plain[:9])} something else {tokenizer.decode(plain[9:])}"
    ids, counted = answer(vlm, READ, "line.png", prediction=expected, **options)
    assert ids == plain
    # Some guesses were right, and those that were wrong were taken out of the cache.
    assert 0 < counted.accepted_tokens < counted.draft_tokens


@needs_kernels
def test_a_right_prediction_takes_fewer_steps_than_tokens(nano: VLM) -> None:
    tokenizer = nano.processor.tokenizer
    options = {"max_new_tokens": 40, "logit_bias": {tokenizer.eos_id: -100}}
    plain, alone = answer(nano, READ, "line.png", speculation=False, **options)
    ids, counted = answer(nano, READ, "line.png", prediction=tokenizer.decode(plain), **options)
    assert ids == plain
    assert len(plain) == 40
    assert counted.steps < alone.steps / 2
    assert counted.accepted_tokens == alone.steps - counted.steps


@needs_kernels
def test_answers_decoded_together_are_those_decoded_alone(nano: VLM) -> None:
    wanted = [("line.png", READ), ("bill.png", "What is the total amount?"), ("scene.png", "What is here?")]
    alone = [answer(nano, text, image, speculation=False, max_new_tokens=30)[0] for image, text in wanted]
    scheduler = Scheduler(nano.runner, nano.processor.tokenizer, EngineLimits(max_num_seqs=3))
    scheduler._step_times = Eager()
    tasks = {}
    for number, (image, text) in enumerate(wanted):
        content = [{"type": "image", "image": str(EXAMPLES / image)}, {"type": "text", "text": text}]
        sample = nano.processor.encode([{"role": "user", "content": content}])
        options = GenerateOptions(max_new_tokens=30, prediction="Harbor at dawn 12.50 a red circle")
        task = scheduler.make_task(Job(sample=sample, options=options))
        tasks[task] = number
        scheduler.add(task)
    together: list[list[int | None]] = [[] for _ in wanted]
    while scheduler.has_work:
        for task, output in scheduler.step():
            together[tasks[task]].append(output.token_id)
    scheduler.close()
    assert together == alone


@needs_kernels
def test_a_constraint_forces_tokens(nano: VLM) -> None:
    _, counted = answer(
        nano, "Where is the red circle?", "scene.png", constraint=WellFormedBoxes(only_boxes=True), max_new_tokens=80
    )
    assert counted.accepted_tokens > 0


def test_float32_decodes_one_by_one() -> None:
    vlm = vl2.load("nano", dtype="float32")
    _, counted = answer(vlm, READ, "line.png", prediction="Harbor at dawn", max_new_tokens=10)
    assert counted.draft_tokens == 0


@pytest.mark.parametrize("options", [{"prediction": 3}, {"speculation": "yes"}])
def test_options_of_a_wrong_type_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        GenerateOptions(**options)


def test_lookup_finds_the_longest_match() -> None:
    lookup = TextLookup((), [1, 2, 3, 4, 9, 2, 3, 5])
    for token in (7, 1, 2, 3):
        lookup.add(token)
    assert lookup.draft(2) == ([4, 9], 3)


def test_lookup_of_equal_matches_takes_the_latest() -> None:
    lookup = TextLookup((), [2, 3, 4, 8, 2, 3, 5, 8])
    lookup.add(2)
    lookup.add(3)
    assert lookup.draft(1)[0] == [5]


def test_lookup_follows_an_expected_answer_over_a_difference() -> None:
    lookup = TextLookup([10, 11, 12, 13, 14, 15], [1, 2])
    assert lookup.draft(3)[0] == [10, 11, 12]
    for token in (10, 11, 99, 13):  # 12 was expected
        lookup.add(token)
        lookup.draft(1)
    assert lookup.draft(5)[0] == [14, 15]


def test_lookup_finds_nothing_in_new_text() -> None:
    lookup = TextLookup((), [1, 2, 3])
    lookup.add(5)
    lookup.add(6)
    assert lookup.draft(4) == ([], 0)


def drafts(chance: float, count: int = 1) -> list[DraftToken]:
    return [DraftToken(token_id=7, chance=chance)] * count


def test_steps_hold_as_many_guesses_as_pay() -> None:
    times = StepTimes()
    for rows, seconds in [(1, 1.0), (5, 1.4), (9, 1.8)] * 30:
        times.add(rows, seconds)
    assert times.of(5) == pytest.approx(1.4, abs=0.02)
    # A guess of probability p adds 0.1 of a step, and pays above a tenth of the tokens per step.
    assert plan_step([drafts(0.05)], times) == [0]
    assert plan_step([drafts(0.9, 3)], times) == [3]
    assert plan_step([drafts(0.9, 40)], times)[0] <= MAX_STEP_ROWS - 1
    assert plan_step([[], drafts(0.9)], times) == [0, 1]


def test_where_rows_cost_as_much_as_steps_nothing_is_guessed() -> None:
    times = StepTimes()
    for rows, seconds in [(1, 1.0), (2, 2.0), (4, 4.0)] * 30:
        times.add(rows, seconds)
    assert plan_step([drafts(0.9, 5)], times) == [0]
