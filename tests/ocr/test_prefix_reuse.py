"""Bare prompts are reused over turns and requests with the bits that reading them anew gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.ocr.golden import toy_folder, toy_vlm
from vl2.infer.prefill import Prefill, Reuse
from vl2.infer.session import Session
from vl2.infer.vlm import VLM, load
from vl2.process.sample import Sample

MODES = {"deepseek-ocr": "base", "unlimited-ocr": "base", "deepseek-ocr-2": "small"}
every_kind = pytest.mark.parametrize("name", list(MODES))
PAGE = Image.effect_noise((300, 200), 60).convert("RGB")
LONG = "It is a long answer, which says the same again and again. " * 10
WINDOW = 16
OPTIONS: Any = {"no_repeat_ngram_size": 0, "logit_bias": {1: -100}}  # the answer does not end early


def conversation(*texts: str) -> list[dict[str, Any]]:
    """Return turns of user and assistant, the first with a page."""
    first, *others = texts
    asked = [{"type": "image", "image": PAGE}, {"type": "text", "text": first}]
    roles = ("assistant", "user")
    rest = [{"role": roles[i % 2], "content": text} for i, text in enumerate(others)]
    return [{"role": "user", "content": asked}, *rest]


def logits_of(vlm: VLM, sample: Sample, reuse: Reuse, longest: int | None) -> tuple[Tensor, int]:
    row = vlm.runner.cache_pool(1, len(sample), len(sample)).take(len(sample))
    with torch.inference_mode():
        prompt = Prefill(vlm.runner, sample, row, opening_id=None, max_chunk=longest, reuse=reuse)
        return prompt.finish().clone(), prompt.num_reused


def fresh(name: str, **bounds: int) -> VLM:
    base = toy_vlm(MODES[name], name)
    return VLM(base.model, base.processor, folder=base.folder, reuse=Reuse(**bounds))


def count_passes(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count how many times the runner encodes and prefills from now on."""
    counts = {"encode": 0, "prefill": 0}

    def counted(name: str) -> Any:
        run = getattr(vlm.runner, name)

        def count(*given: Any) -> Any:
            counts[name] += 1
            return run(*given)

        return count

    for name in counts:
        monkeypatch.setattr(vlm.runner, name, counted(name))
    return counts


@every_kind
@pytest.mark.parametrize("longest", [None, 96])
def test_turns_reuse_earlier_ones_with_the_same_bits(name: str, longest: int | None) -> None:
    vlm, reuse, encoded_alone = toy_vlm(MODES[name], name), Reuse(), Reuse(prefix_bytes=0)
    turns = [
        conversation("Free OCR."),
        conversation("Free OCR.", LONG, "And what else?"),
        conversation("Free OCR.", LONG, "And what else?", LONG, "Are you sure?"),
    ]
    samples, reused = [vlm.processor.encode(messages) for messages in turns], []
    for sample in samples:
        plain, _ = logits_of(vlm, sample, encoded_alone, longest)
        kept, num_reused = logits_of(vlm, sample, reuse, longest)
        assert torch.equal(kept, plain)
        reused.append(num_reused)
    visual = int(samples[0].image_mask.sum())
    # The second turn reuses the picture, as the first question is short; the third everything before the second answer.
    # Chunks of at most 96 tokens are too short to end elsewhere.
    first, second = (1 + visual, len(samples[1])) if longest is None else (len(one) // 96 * 96 for one in samples[:2])
    assert reused == [0, first, second]


@every_kind
def test_the_same_request_is_encoded_and_prefilled_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = fresh(name)
    counts = count_passes(vlm, monkeypatch)
    first = vlm.chat("Free OCR.", [PAGE], max_new_tokens=4, **OPTIONS)
    assert counts == {"encode": 1, "prefill": 2}  # the picture, then the question
    again = vlm.chat("Free OCR.", [PAGE.copy()], max_new_tokens=4, **OPTIONS)
    assert counts == {"encode": 1, "prefill": 2}
    assert again.token_ids == first.token_ids
    other = vlm.chat("Parse the figure.", [PAGE], max_new_tokens=4, **OPTIONS)
    assert counts == {"encode": 1, "prefill": 3}
    plain = fresh(name, encoder_bytes=0, prefix_bytes=0)
    assert plain.chat("Parse the figure.", [PAGE], max_new_tokens=4, **OPTIONS).token_ids == other.token_ids


@every_kind
def test_a_session_reuses_its_turns(name: str) -> None:
    """With answers behind Unlimited-OCR's window: a dropped position may not reach a later turn."""
    vlm, plain = fresh(name), fresh(name, prefix_bytes=0)
    replies = []
    for model in (vlm, plain):
        session = Session(model)
        questions = (("Free OCR.", [PAGE]), ("And what else?", []), ("Are you sure?", []))
        replies.append([session.ask(text, images, max_new_tokens=3 * WINDOW, **OPTIONS) for text, images in questions])
    assert [reply.token_ids for reply in replies[0]] == [reply.token_ids for reply in replies[1]]
    assert vlm.reuse.prefix.reused_tokens >= 2 * replies[0][0].usage.visual_tokens
    assert plain.reuse.prefix.reused_tokens == 0


def test_a_long_answer_leaves_the_cached_prompt_as_it_was() -> None:
    vlm = load(toy_folder("unlimited-ocr"), device="cpu", tiling="base")
    assert vlm.model.config.answer_window == WINDOW
    sample = vlm.processor.encode(conversation("Free OCR."))
    before, _ = logits_of(vlm, sample, vlm.reuse, None)
    first = vlm.chat("Free OCR.", [PAGE], max_new_tokens=3 * WINDOW, **OPTIONS)
    again = vlm.chat("Free OCR.", [PAGE], max_new_tokens=3 * WINDOW, **OPTIONS)
    assert again.token_ids == first.token_ids
    after, num_reused = logits_of(vlm, sample, vlm.reuse, None)
    assert num_reused == len(sample)
    assert torch.equal(after, before)
    # A row that has dropped positions is never stored.
    row = vlm.runner.cache_pool(1, len(sample) + WINDOW, 4096).take(len(sample) + WINDOW)
    row.num_forgotten = 1
    with pytest.raises(AssertionError, match="has dropped positions"):
        vlm.reuse.prefix.restore([], row)
    with pytest.raises(AssertionError, match="1 positions were dropped"):
        vlm.reuse.prefix.store([], row, torch.zeros(1))
