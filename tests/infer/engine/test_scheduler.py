"""Many requests on one model: none changes another's answer, none waits for ever, nothing is kept of one that ended."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vl2
from tests.infer.talkative import load_talkative
from tests.runtime.recording import count_recordings
from vl2.errors import UserError
from vl2.infer.constraint import JsonSchema
from vl2.infer.engine.request import Job, Output, Task
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.prefill import Prefill, Reuse
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, Request
from vl2.model import Cache
from vl2.process.conversation import one_question
from vl2.process.sample import Sample
from vl2.runtime.cuda import CudaGraphRunner, GraphPool

EXAMPLES = Path(__file__).parents[3] / "examples"
QUESTIONS = [
    ("What is the total amount?", ["bill.png"]),
    ("Tell me a story about a dog.", []),
    ("How many blue stars are there?", ["scene.png"]),
    ("Compare both pictures.", ["bars.png", "shapes.png"]),
    ("图片上写着什么？", ["line.png"]),
    ("Hi", []),
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return load_talkative(request.param)


@pytest.fixture(scope="module")
def nano() -> VLM:
    return load_talkative()


def encode(vlm: VLM, question: str, images: Sequence[str] = ()) -> Sample:
    parts: list[dict[str, Any]] = [{"type": "image", "image": str(EXAMPLES / name)} for name in images]
    return vlm.processor.encode([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])


def scheduler(vlm: VLM, *, reuse: bool = False, **limits: Any) -> Scheduler:
    made = EngineLimits(**{"max_num_seqs": 6, "max_context": 4096, "cache_tokens": 8192, "prefill_chunk": 64, **limits})
    kept = Reuse() if reuse else Reuse(encoder_bytes=0, prefix_bytes=0)
    return Scheduler(vlm.runner, vlm.processor.tokenizer, made, reuse=kept)


def job(sample: Sample, max_new_tokens: int = 20, **fields: Any) -> Job:
    options = GenerateOptions(max_new_tokens=max_new_tokens, **fields.pop("options", {}))
    return Job(sample=sample, options=options, **fields)


def run(engine: Scheduler, jobs: Sequence[Job]) -> list[list[Output]]:
    tasks = [engine.make_task(one) for one in jobs]
    outputs: dict[Task, list[Output]] = {task: [] for task in tasks}
    for task in tasks:
        engine.add(task)
    while engine.has_work:
        for task, output in engine.step():
            outputs[task].append(output)
    return [outputs[task] for task in tasks]


def ids(outputs: Sequence[Output]) -> list[int | None]:
    return [output.token_id for output in outputs]


def test_what_runs_beside_a_request_changes_no_bit_of_its_answer(vlm: VLM) -> None:
    jobs = [job(encode(vlm, *question), num_logprobs=2) for question in QUESTIONS]
    alone = [run(scheduler(vlm), [one])[0] for one in jobs]
    together = run(scheduler(vlm), jobs)
    # Logprobs and all: the numbers are the same, not only the tokens.
    assert together == alone
    backwards = run(scheduler(vlm, max_num_seqs=6, cache_tokens=4096), jobs[::-1])
    assert backwards[::-1] == alone
    assert sum(map(len, alone)) > 40


def test_what_was_kept_of_earlier_requests_changes_no_bit_either(vlm: VLM) -> None:
    jobs = [job(encode(vlm, *question), num_logprobs=0) for question in QUESTIONS[:4]]
    engine = scheduler(vlm, reuse=True)
    first, again = run(engine, jobs), run(engine, jobs)
    assert again == first == run(scheduler(vlm), jobs)
    assert engine.reuse.encoder.misses == 4
    assert engine.reuse.prefix.reused_tokens > 0


def test_the_answers_are_those_of_the_python_api(nano: VLM) -> None:
    for question, images in QUESTIONS:
        reply = nano.chat(question, images=[EXAMPLES / name for name in images], max_new_tokens=20)
        (outputs,) = run(scheduler(nano, prefill_chunk=512), [job(encode(nano, question, images))])
        assert ids(outputs) == list(reply.token_ids)
        assert "".join(output.piece for output in outputs).strip() == reply.text
        assert outputs[-1].finish_reason == reply.finish_reason


def test_a_reply_has_the_probabilities_of_its_tokens_where_a_request_asks_for_them(nano: VLM) -> None:
    question, images = QUESTIONS[0]
    turns = one_question(question, [EXAMPLES / name for name in images])
    options = GenerateOptions(max_new_tokens=20)
    asked, plain = nano.batch(
        [Request(messages=turns, options=options, with_probabilities=True), Request(messages=turns, options=options)]
    )
    (outputs,) = run(scheduler(nano), [job(encode(nano, question, images), num_logprobs=0)])
    expected = [math.exp(output.logprobs.chosen) for output in outputs if output.logprobs is not None]
    assert asked.token_probabilities == pytest.approx(expected, rel=1e-3)
    assert asked.text == plain.text
    assert (plain.token_probabilities, plain.confidence((0, len(plain.text)))) == ((), None)
    # The tokens' texts make up the answer: the first half of them says its first half.
    assert asked.token_ends[-1] == len(asked.text)
    middle = asked.token_ends[len(expected) // 2]
    with_text = [
        p for p, a, b in zip(expected, (0, *asked.token_ends), asked.token_ends, strict=False) if a < b <= middle
    ]
    assert asked.confidence((0, middle)) == pytest.approx(sum(with_text) / len(with_text), rel=1e-3)


def test_penalties_and_bias_choose_what_their_definition_chooses(vlm: VLM) -> None:
    """Expected ids from the model's own probabilities, which are reported before any option, and OpenAI's formula."""
    sample = encode(vlm, "Tell me a story about a dog.")
    plain = run(scheduler(vlm), [job(sample)])[0]
    biased_id = next(i for i in ids(plain) if i is not None and i != vlm.processor.tokenizer.eos_id)
    options = {"frequency_penalty": 1.5, "presence_penalty": 0.7, "logit_bias": {biased_id: -3.0}}
    num_ids = vlm.model.config.language_config.vocab_size
    asked = job(sample, max_new_tokens=24, options=options, num_logprobs=num_ids)
    (outputs,) = run(scheduler(vlm), [asked])
    assert ids(outputs) != ids(plain)
    generated: list[int] = []
    for output in outputs:
        assert output.logprobs is not None
        assert output.token_id is not None
        scores = dict(output.logprobs.likeliest)
        scores[biased_id] -= 3.0
        for token_id in set(generated):
            scores[token_id] -= 1.5 * generated.count(token_id) + 0.7
        assert scores[output.token_id] >= max(scores.values()) - 1e-3
        generated.append(output.token_id)
    assert max(map(generated.count, generated)) > 1, "a count above one is part of the test: take another question"

    # Beside others, and by the other loop, they are the same.
    others = [job(encode(vlm, *question), options={"presence_penalty": -1.0}) for question in QUESTIONS[:3]]
    assert ids(run(scheduler(vlm), [*others, asked])[-1]) == generated
    if vlm.model.dtype == torch.float32:
        reply = vlm.chat("Tell me a story about a dog.", max_new_tokens=24, **options)
        assert list(reply.token_ids) == generated


def test_a_bias_of_an_id_that_there_is_not_is_refused_before_it_waits(nano: VLM) -> None:
    unknown = nano.processor.tokenizer.num_ids
    wanted = job(encode(nano, "Hi"), options={"logit_bias": {unknown: 1}})
    with pytest.raises(UserError, match=f"there is no token {unknown}"):
        scheduler(nano).make_task(wanted)
    with pytest.raises(UserError, match=f"there is no token {unknown}"):
        nano.chat("Hi", logit_bias={unknown: 1})


def test_draws_depend_on_the_seed_alone(nano: VLM) -> None:
    sample = encode(nano, "Tell me a story.")
    jobs = [job(sample, options={"temperature": 1.3, "seed": seed}) for seed in (1, 2, 1)]
    first, second, third = map(ids, run(scheduler(nano), jobs))
    assert first == third == ids(run(scheduler(nano), [jobs[0]])[0])
    assert first != second


def test_a_long_prompt_does_not_hold_up_an_answer_under_way(nano: VLM) -> None:
    engine = scheduler(nano)
    quick = engine.make_task(job(encode(nano, "Tell me a story.")))
    engine.add(quick)
    while quick.sequence is None:
        engine.step()
    long = engine.make_task(job(encode(nano, "word " * 900), max_new_tokens=1))
    engine.add(long)
    between = 0
    while long.first_token_at is None:
        between += sum(task is quick for task, _ in engine.step())
    assert between >= 8  # a token for every pass over the long prompt


@pytest.mark.parametrize(("prompts", "seconds", "expected"), [(1, 100.0, 1), (3, 0.0, 2), (3, 100.0, 3)])
def test_between_two_steps_of_answers_each_prompt_gets_a_chunk_as_far_as_time_allows(
    nano: VLM, monkeypatch: pytest.MonkeyPatch, prompts: int, seconds: float, expected: int
) -> None:
    monkeypatch.setattr("vl2.infer.engine.scheduler.PREFILL_S", seconds)
    engine, chunks = scheduler(nano), list[Prefill]()
    step = Prefill.step
    monkeypatch.setattr(Prefill, "step", lambda self: chunks.append(self) or step(self))
    quick = engine.make_task(job(encode(nano, "Tell me a story.")))
    engine.add(quick)
    while quick.sequence is None:
        engine.step()
    for _ in range(prompts):
        engine.add(engine.make_task(job(encode(nano, "word " * 900), max_new_tokens=1)))
    engine.step()  # the first token's step is of decoding alone
    chunks.clear()
    assert any(task is quick for task, _ in engine.step())
    assert len(chunks) == expected


def test_a_short_prompt_does_not_wait_for_all_of_a_long_one(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vl2.infer.engine.scheduler.PREFILL_S", 0.0)  # few chunks at a time
    engine = scheduler(nano)
    long = engine.make_task(job(encode(nano, "word " * 900), max_new_tokens=4))
    short = engine.make_task(job(encode(nano, "Hi"), max_new_tokens=4))
    engine.add(long)
    engine.step()
    engine.add(short)
    while short.ended_at is None:
        engine.step()
    assert long.first_token_at is None
    while engine.has_work:
        engine.step()
    assert long.ended_at is not None


def test_a_request_waits_until_its_tokens_fit_and_nobody_overtakes_it(nano: VLM) -> None:
    engine = scheduler(nano, max_context=1024, cache_tokens=1024)
    first, large, small = (
        engine.make_task(job(encode(nano, "Tell me a story."), max_new_tokens=n)) for n in (30, 1000, 8)
    )
    for task in (first, large, small):
        engine.add(task)
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (1, 2)
    assert engine.num_reserved == first.num_reserved <= 1024
    while large.started_at is None:
        assert small.started_at is None
        engine.step()
    assert first.ended_at is not None


def test_a_cancelled_request_leaves_at_every_stage_and_frees_its_tokens(nano: VLM) -> None:
    engine = scheduler(nano, max_num_seqs=2)
    read, decoded, waiting = (
        engine.make_task(job(encode(nano, text))) for text in ("word " * 300, "Tell me a story.", "Hello")
    )
    engine.add(decoded)
    engine.step()  # it gives the first token, and leaves the second to the next
    engine.step()
    engine.add(read)
    engine.add(waiting)
    engine.step()
    assert (decoded.sequence is not None, read.prefill is not None, waiting.cache) == (True, True, None)
    for task in (decoded, read, waiting):
        assert engine.cancel(task)
        assert not engine.cancel(task)
        assert task.cache is None
    assert not engine.has_work
    assert engine.num_reserved == 0


def test_the_clients_take_turns(nano: VLM) -> None:
    engine = scheduler(nano, max_num_seqs=1)
    sample = encode(nano, "Hi")
    greedy = [engine.make_task(job(sample, max_new_tokens=1, client="a")) for _ in range(5)]
    other = engine.make_task(job(sample, max_new_tokens=1, client="b"))
    for task in (*greedy, other):
        engine.add(task)
    order = []
    while engine.has_work:
        order += [task for task, output in engine.step() if output.is_last]
    assert order.index(other) == 1
    assert [task for task in order if task is not other] == greedy


def test_what_goes_wrong_in_one_request_ends_no_other(nano: VLM) -> None:
    engine = scheduler(nano)
    good = job(encode(nano, "Tell me a story."))
    broken_sample = replace(good.sample, input_ids=good.sample.input_ids.clone())
    broken_sample.input_ids[3] = 10**6  # no such id in the table
    outcomes = run(engine, [good, job(broken_sample), good])
    assert isinstance(outcomes[1][-1].error, Exception)
    assert ids(outcomes[0]) == ids(outcomes[2]) == ids(run(scheduler(nano), [good])[0])


def test_a_constraint_holds_for_its_own_request_only(nano: VLM) -> None:
    sample = encode(nano, "Hello")
    free, held = run(
        scheduler(nano), [job(sample), job(sample, options={"constraint": JsonSchema({"type": "boolean"})})]
    )
    assert "".join(output.piece for output in held) in ("true", "false")
    assert ids(free) == ids(run(scheduler(nano), [job(sample)])[0])


def test_logprobs_are_those_of_the_model(nano: VLM) -> None:
    sample = encode(nano, "Hello")
    (outputs,) = run(scheduler(nano), [job(sample, max_new_tokens=1, num_logprobs=3)])
    with torch.inference_mode():
        logits_V = nano.model(vl2.collate([sample])).logits[0, -1]
    log_p_V = logits_V.log_softmax(-1)
    found = outputs[0].logprobs
    assert found is not None
    assert found.chosen == pytest.approx(float(log_p_V.max()), abs=1e-4)
    assert list(found.likeliest) == log_p_V.topk(3).indices.tolist()


def test_what_can_never_run_is_refused_before_it_waits(nano: VLM) -> None:
    engine = scheduler(nano, max_context=64, cache_tokens=64)
    with pytest.raises(UserError, match="the context is 64"):
        engine.make_task(job(encode(nano, "word " * 100)))
    with pytest.raises(UserError, match="no adapter 'x'"):
        engine.make_task(job(encode(nano, "Hi"), adapter="x"))
    with pytest.raises(UserError, match="cache_tokens must hold one request"):
        EngineLimits(max_context=128, cache_tokens=64)
    with pytest.raises(UserError, match="max_num_seqs must be at most 64"):
        EngineLimits(max_num_seqs=65)


def test_a_prepared_engine_decodes_every_batch_size_by_the_graphs_that_it_has(
    nano: VLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prompts of one chunk each and answers of different lengths: the batch grows to three and shrinks to one.
    texts = ("Hi", "Tell me a story about a dog.", "What is this?")
    jobs = [job(encode(nano, text), max_new_tokens=8 * (i + 1)) for i, text in enumerate(texts)]
    expected = [ids(run(scheduler(nano), [one])[0]) for one in jobs]

    recorded = count_recordings("cpu", monkeypatch)
    graphs = copy.copy(nano)
    graphs.refresh()
    assert isinstance(graphs.runner, CudaGraphRunner)
    replayed: list[int] = []
    decode = GraphPool.decode

    def watched(pool: GraphPool, token_ids: Sequence[int], rows: Sequence[Cache]) -> torch.Tensor:
        replayed.append(len(rows))
        return decode(pool, token_ids, rows)

    monkeypatch.setattr(GraphPool, "decode", watched)
    engine = scheduler(graphs, max_num_seqs=3, max_context=1024, cache_tokens=3 * 1024)
    engine.prepare()
    shapes = {(rows, positions) for rows in (1, 2, 3) for positions in (512, 1024)}
    assert len(recorded) == len(shapes)
    assert set(recorded) == shapes
    assert [ids(outputs) for outputs in run(engine, jobs)] == expected
    assert set(replayed) == {1, 2, 3}
    assert len(replayed) == engine.totals.steps
    assert len(recorded) == len(shapes), "nothing was recorded while requests waited"
    engine.close()
