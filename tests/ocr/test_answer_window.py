"""Unlimited-OCR sees its prompt and the last tokens of its answer: a cache of fixed size, and transformers' answers."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.ocr.cases import CASES
from tests.ocr.golden import sample_of, toy_folder, toy_goldens, toy_vlm
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import load
from vl2.model import Cache

WINDOW = 16
OPTIONS = {"no_repeat_ngram_size": 0, "logit_bias": {1: -100}}


@pytest.mark.parametrize("case", CASES[:3], ids=[case.name for case in CASES[:3]])
def test_long_answers_are_those_of_transformers(case) -> None:
    golden = toy_goldens()["unlimited"]
    assert golden["window"] == WINDOW
    vlm, sample = toy_vlm(case.mode, "unlimited-ocr"), sample_of(case, "unlimited-ocr")
    assert vlm.model.config.answer_window == WINDOW
    options = GenerateOptions(max_new_tokens=6 * WINDOW, **OPTIONS)
    answer = [event.token_id for event in vlm.sample_events(sample, options)]
    assert answer == golden["answers"][f"{case.name}.{WINDOW}"]
    # Without the window another answer: the test can fail.
    assert answer != golden["answers"][f"{case.name}.1000000"]


def test_a_cache_forgets_the_oldest_and_keeps_the_prompt() -> None:
    """Each position holds its own number; what is held must be the prompt and the last of the answer, in any order."""
    for window in (1, 2, 3, 7):
        prompt = 5
        cache = Cache([(torch.zeros(1, 1, prompt + window, 1),) * 1], [prompt])
        cache.layers[0][0][0, 0, :prompt, 0] = torch.arange(prompt)
        for position in range(prompt, prompt + 40):
            cache.make_room(prompt, window)
            assert cache.positions == [position]
            (held,) = cache.write(0, (torch.full((1, 1, 1, 1), float(position)),))
            cache.advance(1)
            seen = sorted(held.flatten().tolist())
            first = max(prompt, position + 1 - window)
            assert seen == [*range(prompt), *range(first, position + 1)]


def test_answers_together_are_those_alone() -> None:
    vlm = toy_vlm("tiny", "unlimited-ocr")
    prompts = ["Free OCR.", "Parse the figure, and say what it shows.", "a"]
    questions = [[{"role": "user", "content": prompt}] for prompt in prompts]
    together = vlm.batch(questions, max_new_tokens=50, **OPTIONS)
    alone = [vlm.generate(question, max_new_tokens=50, **OPTIONS) for question in questions]
    assert [reply.token_ids for reply in together] == [reply.token_ids for reply in alone]


@pytest.mark.parametrize("form", ["auto", "int8"])
def test_the_kernels_forget_as_the_plain_model_does(form: str) -> None:
    """In bfloat16, where the kernels run: behind the window the logits are those of plain PyTorch in float32."""
    vlm = load(toy_folder("unlimited-ocr"), device="cpu", dtype="bfloat16", tiling="tiny", cache=form)
    if vlm.runner.name == "plain PyTorch":
        pytest.skip("no kernels here")
    exact = copy.copy(toy_vlm("tiny", "unlimited-ocr"))
    sample = exact.processor.encode([{"role": "user", "content": "Free OCR."}])
    states = []
    for model in (vlm, exact):
        said = toy_goldens()["unlimited"]["answers"][f"{CASES[0].name}.{WINDOW}"][: 2 * WINDOW]
        row = model.runner.cache_pool(1, len(sample) + WINDOW + 1, 4096).take(len(sample) + WINDOW + 1)
        with torch.inference_mode():
            model.runner.prefill(model.model.embed(sample.input_ids[None], sample.image_mask[None], None), row)
            logits = []
            for token in said:
                row.make_room(len(sample), WINDOW)
                logits.append(model.runner.decode([token], [row], 1)[0].float().clone())
        states.append(torch.stack(logits))
    correlation = torch.corrcoef(torch.stack([part[-WINDOW:].flatten() for part in states]))[0, 1]
    assert correlation > 0.99
