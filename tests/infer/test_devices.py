"""Answers on a card beside those of the CPU: in half the bits, quantized, many at once, and with what was kept.

Each body runs on the CPU as well, where it is held to the same or to what is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.devices import CPU_AND_CARD, without_tf32
from tests.infer.talkative import load_talkative
from tests.model.configs import small_model
from vl2.infer.engine.request import Job, Task
from vl2.infer.engine.scheduler import EngineLimits, Scheduler
from vl2.infer.prefill import Reuse
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import VLM, choose_dtype, load
from vl2.model import VL2
from vl2.process.sample import Sample, collate
from vl2.quant import quantized_matmul
from vl2.quant.modules import QuantizedExperts, QuantizedLinear
from vl2.quant.quantize_model import SCHEME_NAMES, SCHEMES, SchemeName, quantize_model

EXAMPLES = Path(__file__).parents[2] / "examples"
Question = tuple[str, tuple[str, ...]]
QUESTIONS: tuple[Question, ...] = (
    ("What is the total amount?", ("bill.png",)),
    ("What does the image say?", ("word.png",)),
    ("Name a colour.", ()),
    ("How many blue stars are there?", ("scene.png",)),
    ("Compare both pictures.", ("bars.png", "shapes.png")),
)
ANSWER = 16  # tokens

talkative = cache(load_talkative)


@pytest.fixture(params=CPU_AND_CARD)
def device(request: pytest.FixtureRequest) -> str:
    without_tf32()
    return str(request.param)


def encode(question: Question) -> Sample:
    text, images = question
    parts = [{"type": "image", "image": str(EXAMPLES / name)} for name in images]
    return talkative().processor.encode([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])


def ask(vlm: VLM, question: Question) -> tuple[int, ...]:
    text, images = question
    return vlm.chat(text, [EXAMPLES / name for name in images], max_new_tokens=ANSWER).token_ids


@torch.inference_mode()
def logits_of(model: VL2, sample: Sample) -> Tensor:
    """Return the float32 logits of all positions, [S, V]."""
    logits_SV: Tensor = model(collate([sample]).to(model.device)).logits[0].cpu()
    return logits_SV


def last_logits(model: VL2, samples: Sequence[Sample]) -> Tensor:
    return torch.stack([logits_of(model, sample)[-1] for sample in samples])


def sure_of(logits_BV: Tensor) -> list[int]:
    """Return the rows whose likeliest token lies well before the next one: at least two."""
    best = logits_BV.topk(2).values
    found = [row for row in range(len(best)) if best[row, 0] - best[row, 1] > 1]
    assert len(found) >= 2
    return found


def gaps(question: Question, answer: Sequence[int | None]) -> Tensor:
    """Return how far each token of an answer lies behind the likeliest one, by logits in float32 on the CPU.

    These logits have a standard deviation of 2 to 3.
    """
    sample, ids = encode(question), torch.tensor(answer)
    said = replace(
        sample,
        input_ids=torch.cat((sample.input_ids, ids)),
        labels=torch.cat((sample.labels, ids)),
        image_mask=torch.cat((sample.image_mask, torch.zeros(len(ids), dtype=torch.bool))),
    )
    logits_SV = logits_of(talkative().model, said)[len(sample) - 1 : -1]
    return logits_SV.amax(dim=1) - logits_SV.gather(1, ids.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize("question", QUESTIONS)
def test_float16_answers_as_float32_does(device: str, question: Question) -> None:
    vlm = talkative("float16", device)
    ours, exact = (logits_of(model, encode(question))[-1] for model in (vlm.model, talkative().model))
    assert (ours - exact).norm() < 0.01 * exact.norm()
    assert gaps(question, ask(vlm, question)).max() < 0.05


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_a_quantized_model_gives_what_its_codes_say(
    device: str, scheme: SchemeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load("nano", device="cpu", dtype="float32", weights=scheme)
    samples = [encode(question) for question in QUESTIONS]
    with monkeypatch.context() as patch:
        # Weights made whole and multiplied in float32, as everywhere but on a CPU with kernels.
        patch.setenv("VL2_KERNELS", "off")
        patch.setattr(quantized_matmul, "has_int8_products", lambda: False)
        exact, expected = last_logits(made.model, samples), [ask(made, question) for question in QUESTIONS]
    made.reuse.clear()
    made.model.to(device)
    ours, answers = last_logits(made.model, samples), [ask(made, question) for question in QUESTIONS]
    # A CPU rounds what enters products of many rows to 8 bits where it has instructions for these.
    far_B = (ours - exact).norm(dim=1) / exact.norm(dim=1)
    assert far_B.max() < (0.15 if device == "cpu" else 1e-3)
    # An answer whose first token is nearly a tie may begin with another one on a CPU.
    compared = sure_of(exact) if device == "cpu" else range(len(QUESTIONS))
    assert [answers[i] for i in compared] == [expected[i] for i in compared]
    assert len({*answers}) > 3


@pytest.mark.parametrize("scheme", SCHEME_NAMES)
def test_weights_are_quantized_to_the_same_codes_wherever_they_lie(device: str, scheme: SchemeName) -> None:
    ours, theirs = (small_model("base") for _ in range(2))
    ours.to(device)
    names = quantize_model(ours, SCHEMES[scheme])
    assert quantize_model(theirs, SCHEMES[scheme]) == names
    for name in names:
        mine, reference = ours.get_submodule(name), theirs.get_submodule(name)
        assert isinstance(mine, QuantizedLinear | QuantizedExperts)
        for leaf, codes in mine.named_buffers():
            wanted = reference.get_buffer(leaf)
            assert codes.device.type == device
            # A number half-way between two codes, or a scale as good as another, may go either way.
            assert (~torch.isclose(codes.cpu(), wanted, rtol=2e-3, atol=0)).float().mean() < 1e-3, (name, leaf)


def answer_all(vlm: VLM, questions: Sequence[Question], **limits: int) -> list[tuple[int | None, ...]]:
    """Ask them of one engine, each some steps after the one before, and give up another one on the way."""
    made = EngineLimits(max_context=4096, cache_tokens=8192, **limits)
    engine = Scheduler(vlm.runner, vlm.processor.tokenizer, made, reuse=Reuse())
    heard: dict[Task, list[int | None]] = {}

    def step() -> None:
        for task, output in engine.step():
            assert output.error is None, output.error
            heard[task].append(output.token_id)

    options = GenerateOptions(max_new_tokens=ANSWER)
    tasks = []
    for number, question in enumerate(questions):
        # Budgets of their own: they leave at different times.
        shorter = replace(options, max_new_tokens=ANSWER - 2 * number)
        tasks.append(engine.make_task(Job(sample=encode(question), options=shorter)))
        heard[tasks[-1]] = []
        engine.add(tasks[-1])
        step()
    given_up = engine.make_task(Job(sample=encode(QUESTIONS[0]), options=options))
    heard[given_up] = []
    engine.add(given_up)
    while not heard[given_up]:
        step()
    assert engine.num_running > 1
    engine.cancel(given_up)
    while engine.has_work:
        step()
    return [tuple(heard[task]) for task in tasks]


def test_requests_that_join_and_leave_are_answered_as_each_alone(device: str) -> None:
    vlm = talkative("float32", device)
    answers = answer_all(vlm, QUESTIONS, max_num_seqs=4, prefill_chunk=64)
    assert [len(answer) for answer in answers] == [16, 14, 12, 10, 8]
    assert answers == [ask(vlm, question)[: len(a)] for question, a in zip(QUESTIONS, answers, strict=True)]


def test_requests_in_bfloat16_are_answered_within_what_it_rounds(device: str) -> None:
    vlm = talkative("bfloat16", device)
    together = answer_all(vlm, QUESTIONS, max_num_seqs=4)
    for answers in (together, [ask(vlm, question) for question in QUESTIONS]):
        found = torch.cat([gaps(*pair) for pair in zip(QUESTIONS, answers, strict=True)])
        # A near tie of the router may send a token to another expert, and then its logits are others: one in 60 here.
        assert (found > 0.1).float().mean() < 0.1
    # Where float32 is sure of the first token, bfloat16 chooses it too.
    exact = last_logits(talkative().model, [encode(question) for question in QUESTIONS])
    assert [together[i][0] for i in sure_of(exact)] == [exact[i].argmax() for i in sure_of(exact)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_kept_changes_no_answer(device: str, dtype: str) -> None:
    base = talkative(dtype, device)
    keeping, plain = (
        VLM(base.model, base.processor, folder=base.folder, reuse=reuse)
        for reuse in (Reuse(), Reuse(encoder_bytes=0, prefix_bytes=0))
    )
    pictures = ("bars.png", "shapes.png")
    for number, text in enumerate(("Compare both pictures.", "What is this?", "Which is the larger one?")):
        before = keeping.reuse.prefix.reused_tokens
        assert ask(keeping, (text, pictures)) == ask(plain, (text, pictures))
        assert (keeping.reuse.prefix.reused_tokens - before > 500) == (number > 0)
    # The other way round: what the encoder made of them is known, the prompt is not.
    known, hits = keeping.reuse.prefix.reused_tokens, keeping.reuse.encoder.hits
    turned = ("Compare both pictures.", pictures[::-1])
    assert ask(keeping, turned) == ask(plain, turned)
    assert (keeping.reuse.prefix.reused_tokens, keeping.reuse.encoder.hits) == (known, hits + 2)
    assert plain.reuse.prefix.reused_tokens == plain.reuse.encoder.hits == 0


def test_the_automatic_type_is_the_checkpoints_where_the_device_has_it(device: str) -> None:
    has_it = device == "cpu" or torch.cuda.get_device_capability() >= (8, 0)
    assert choose_dtype("auto", torch.device(device)) == (None if has_it else torch.float16)
    model = load("nano", device=device, dtype="auto").model
    assert model.dtype == (getattr(torch, model.config.torch_dtype) if has_it else torch.float16)
    assert model.device.type == device


@pytest.mark.parametrize(
    ("capability", "expected"), [((7, 5), torch.float16), ((8, 0), None), ((8, 9), None), ((9, 0), None)]
)
def test_a_card_without_bfloat16_takes_float16(
    capability: tuple[int, int], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_dtype("auto", torch.device("cuda")) == expected
