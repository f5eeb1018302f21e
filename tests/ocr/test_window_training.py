"""Unlimited-OCR is trained on what it sees when it answers: its prompt, and the last tokens of its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.ocr.cases import CASES
from tests.ocr.golden import apart, sample_of, toy_goldens, toy_vlm
from vl2.checkpoint.toy_checkpoint import drawn_model, toy_config
from vl2.data.index import count_tokens
from vl2.data.pack import Packed, pack_samples
from vl2.data.record import Message, Part, Record
from vl2.errors import UserError
from vl2.infer.prefill import Prefill
from vl2.process.sample import Sample
from vl2.train.loss import next_token_loss
from vl2.train.recompute import checkpoint_activations

WINDOW = 16
NEAR = 1e-4
LONG = "a long answer, of which the model has to forget the beginning while it writes on and on and on to the end. " * 2
PAGE = Image.effect_noise((300, 200), 60).convert("RGB")


def turns(answer: str, image: Image.Image | None = PAGE) -> list[dict[str, Any]]:
    pictures = [] if image is None else [{"type": "image", "image": image}]
    asked = [*pictures, {"type": "text", "text": "Free OCR."}]
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def encoded(messages: list[dict[str, Any]]) -> Sample:
    return toy_vlm("tiny", "unlimited-ocr").processor.encode(messages, train=True)


def forced_logits(packed: Packed) -> Tensor:
    """Return the logits of every position of a pack, [S, V], as training computes them."""
    model = toy_vlm("tiny", "unlimited-ocr").model
    with torch.no_grad():
        return model.language.logits(model.states(packed).states_BSD[0])


def decoded_logits(prompt: Sample, answer: list[int]) -> Tensor:
    """Return the logits that predict each token of an answer, [N, V], decoded one by one as the engine does."""
    vlm = toy_vlm("tiny", "unlimited-ocr")
    length = len(prompt)
    with torch.inference_mode():
        row = vlm.runner.cache_pool(1, length + WINDOW, length + WINDOW).take(length + WINDOW)
        logits = [Prefill(vlm.runner, prompt, row, opening_id=None).finish().clone()]
        for token in answer[:-1]:
            row.make_room(length, WINDOW)
            logits.append(vlm.runner.decode([token], [row], 1)[0].clone())
    return torch.stack(logits)


def test_the_logits_of_training_are_those_of_decoding() -> None:
    sample = encoded(turns(LONG))
    start = sample.prompt_length
    answer = sample.input_ids[start:].tolist()
    assert len(answer) > 3 * WINDOW
    prompt = toy_vlm("tiny", "unlimited-ocr").processor.encode(turns(LONG)[:1])
    assert len(prompt) == start
    others = [encoded(turns("short", None)), encoded(turns(LONG, None))]
    packed = pack_samples([others[0], sample, others[1]], toy_vlm("tiny", "unlimited-ocr").processor, 1024)
    first = len(others[0]) + start - 1
    ours = forced_logits(packed)[first : first + len(answer)]
    assert apart(ours, decoded_logits(prompt, answer)) < NEAR
    # Without a window the logits are others, behind the first tokens: the test can fail.
    unseen = replace(packed, prompt_lengths=tuple(len(one) for one in (others[0], sample, others[1])))
    causal = forced_logits(unseen)[first : first + len(answer)]
    assert apart(causal[:WINDOW], ours[:WINDOW]) < NEAR
    assert apart(causal[2 * WINDOW :], ours[2 * WINDOW :]) > 0.01


@pytest.mark.parametrize("case", CASES[:3], ids=[case.name for case in CASES[:3]])
def test_training_predicts_the_answers_that_transformers_gives(case) -> None:
    """An answer of 96 tokens, longer than six windows, that transformers generated with its own cache."""
    vlm, prompt = toy_vlm(case.mode, "unlimited-ocr"), sample_of(case, "unlimited-ocr")
    answer = torch.tensor(toy_goldens()["unlimited"]["answers"][f"{case.name}.{WINDOW}"])
    sample = replace(
        prompt,
        input_ids=torch.cat((prompt.input_ids, answer)),
        labels=torch.cat((prompt.labels, answer)),
        image_mask=torch.cat((prompt.image_mask, torch.zeros(len(answer), dtype=torch.bool))),
        answers=((len(prompt), len(prompt) + len(answer)),),
    )
    logits = forced_logits(pack_samples([sample], vlm.processor))[len(prompt) - 1 : -1]
    logits[:, 1] = -torch.inf  # the end is forbidden in the golden
    assert logits.argmax(dim=-1).tolist() == answer.tolist()


def test_an_earlier_answer_may_not_be_longer_than_the_window() -> None:
    """One that fits is seen by later answers in full and by itself too, so every answer is as the engine's."""
    two = [*turns("no"), *turns(LONG, None)]
    sample = encoded(two)
    (start, stop), (second, end) = sample.answers
    assert stop - start <= WINDOW < end - second == len(sample) - sample.prompt_length
    logits = forced_logits(pack_samples([sample], toy_vlm("tiny", "unlimited-ocr").processor))
    processor = toy_vlm("tiny", "unlimited-ocr").processor
    for first, last, messages in ((start, stop, two[:1]), (second, end, two[:3])):
        answer = sample.input_ids[first:last].tolist()
        assert apart(logits[first - 1 : last - 1], decoded_logits(processor.encode(messages), answer)) < NEAR
    said = rf"answer 1 of 2 has \d+ tokens, and Unlimited-OCR sees the last {WINDOW} of an answer that it writes"
    with pytest.raises(UserError, match=said):
        encoded([*turns(LONG), *turns("no", None)])
    roles = ("user", "assistant") * 2
    texts = ("Free OCR.", LONG, "Again.", "no")
    messages = tuple(Message(role=role, parts=(Part(text=text),)) for role, text in zip(roles, texts, strict=True))
    record = Record(id="a", source="x", category="ocr", language="en", licence="MIT", messages=messages)
    with pytest.raises(UserError, match=said):
        count_tokens(record, processor)
    # DeepSeek-OCR sees whole answers.
    assert count_tokens(record, toy_vlm("tiny").processor).trained > WINDOW


def test_recomputed_activations_keep_the_window() -> None:
    packed = pack_samples([encoded(turns(LONG))], toy_vlm("tiny", "unlimited-ocr").processor)
    losses = []
    for recomputes in (False, True):
        model = drawn_model(toy_config("unlimited-ocr")).train()
        if recomputes:
            checkpoint_activations(model, encoder="blocks")
        states = model.states(packed).states_BSD[0]
        total, _ = next_token_loss(states, packed.labels, model.language.lm_head.weight)
        total.backward()
        gradient = model.language.model.layers[0].self_attn.k_proj.weight.grad
        assert gradient is not None
        losses.append((total.detach(), gradient))
    for ours, theirs in zip(*losses, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
