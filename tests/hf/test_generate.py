"""generate against the released implementation: alone, in a left-padded batch, sampled, with beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.reference import CASES, SIZES, case_of, messages_of, model_goldens
from vl2.errors import UserError

pytest.importorskip("transformers")

import transformers

from tests.hf.golden import hf_model, hf_processor
from vl2.hf.model import CACHE_NAME

pytestmark = pytest.mark.hf

NEW_TOKENS = 24


def prompt(size: str, *cases: str) -> dict[str, Any]:
    conversations = [messages_of(size, case) for case in cases]
    return dict(hf_processor(size).apply_chat_template(conversations, add_generation_prompt=True))


def generated(size: str, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return hf_model(size).generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize(("size", "case"), CASES)
def test_greedy_tokens_are_the_released_ones(size: str, case: str) -> None:
    assert generated(size, prompt(size, case)) == [case_of(size, case)["generate"]["ids"]]


@pytest.mark.parametrize("case", ["single", "grounding"])
def test_the_repetition_penalty_covers_the_prompt_as_released(case: str) -> None:
    golden = case_of("base", case)["generate_repetition_penalty_1.1"]["ids"]
    assert generated("base", prompt("base", case), repetition_penalty=1.1) == [golden]


@pytest.mark.parametrize("size", SIZES)
def test_a_left_padded_batch_answers_as_one_by_one(size: str) -> None:
    golden = model_goldens(size)["left_padded_batch"]
    answers = generated(size, prompt(size, *golden["cases"]))
    assert answers == [row["ids"] for row in golden["rows"]]


def test_a_row_that_ends_early_is_padded_and_the_others_go_on() -> None:
    golden = model_goldens("base")["left_padded_batch"]
    ids = [row["ids"] for row in golden["rows"]]
    stop = ids[1][5]
    assert stop not in ids[0]
    answers = generated("base", prompt("base", *golden["cases"][:2]), eos_token_id=stop, pad_token_id=7)
    assert answers == [ids[0], ids[1][: ids[1].index(stop) + 1] + [7] * (NEW_TOKENS - 1 - ids[1].index(stop))]


def test_without_a_cache_a_text_prompt_gets_the_same_answer() -> None:
    inputs = prompt("small", "text")
    assert generated("small", inputs, use_cache=False, max_new_tokens=4)[0] == generated("small", inputs)[0][:4]


def test_sampling_is_repeatable_by_seed() -> None:
    inputs = prompt("base", "single", "text")

    def sampled(seed: int) -> list[list[int]]:
        transformers.set_seed(seed)
        return generated("base", inputs, do_sample=True, temperature=1.5, top_p=0.9, max_new_tokens=8)

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_several_answers_to_prompts_with_images_are_those_of_repeated_prompts() -> None:
    transformers.set_seed(3)
    several = generated("base", prompt("base", "two", "single"), do_sample=True, num_return_sequences=2)
    transformers.set_seed(3)
    repeated = generated("base", prompt("base", "two", "two", "single", "single"), do_sample=True)
    assert several == repeated


@pytest.mark.parametrize("size", SIZES)
def test_beam_search_in_a_padded_batch_finds_what_it_finds_alone(size: str) -> None:
    options = {"num_beams": 3, "max_new_tokens": 8}
    together = generated(size, prompt(size, "text", "single"), **options)
    assert together == [generated(size, prompt(size, case), **options)[0] for case in ("text", "single")]


def test_beam_search_scores_at_least_as_well_as_greedy() -> None:
    inputs = prompt("base", "text")
    length = inputs["input_ids"].shape[1]

    def score(ids: list[int]) -> float:
        row = torch.cat((inputs["input_ids"][0], torch.tensor(ids))).unsqueeze(0)
        with torch.no_grad():
            log_p = hf_model("base")(input_ids=row).logits[0, length - 1 : -1].log_softmax(-1)
        return float(log_p[range(len(ids)), ids].sum())

    greedy = generated("base", inputs, max_new_tokens=6)[0]
    beams = generated("base", inputs, max_new_tokens=6, num_beams=16)[0]
    assert score(beams) >= score(greedy) - 1e-3


def test_a_streamer_gets_every_token() -> None:
    class Collect(transformers.generation.streamers.BaseStreamer):
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    streamer, inputs = Collect(), prompt("tiny", "text")
    answer = generated("tiny", inputs, streamer=streamer)[0]
    assert streamer.ids == [*inputs["input_ids"][0].tolist(), *answer, -1]


def test_a_conversation_goes_on_from_its_cache() -> None:
    inputs = prompt("base", "single")
    model, golden = hf_model("base"), case_of("base", "single")["generate"]["ids"]
    first = model.generate(**inputs, max_new_tokens=10, do_sample=False, return_dict_in_generate=True)
    inputs_again = {"input_ids": first["sequences"], "attention_mask": torch.ones_like(first["sequences"])}
    second = model.generate(**inputs_again, **{CACHE_NAME: first[CACHE_NAME]}, max_new_tokens=14, do_sample=False)
    assert second[0, inputs["input_ids"].shape[1] :].tolist() == golden


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache must be True"),
        ({"custom_generate": "someone/code"}, "no remote code"),
        ({"trust_remote_code": True}, "no remote code"),
        ({"prompt_lookup_num_tokens": 2}, "not supported|cropped"),
    ],
)
def test_ways_to_generate_that_do_not_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, ValueError), match=message):
        generated("base", prompt("base", "single"), **options)


def test_right_padding_and_unknown_arguments_are_refused() -> None:
    conversations = [messages_of("base", case) for case in ("text", "single")]
    inputs = hf_processor("base").apply_chat_template(conversations, add_generation_prompt=True, padding_side="right")
    with pytest.raises(UserError, match="pad on the left"):
        generated("base", dict(inputs))
    with pytest.raises(ValueError, match="nonsense"):
        generated("base", prompt("base", "text"), nonsense=1)
    with pytest.raises((UserError, ValueError), match="cache"):
        generated("base", prompt("base", "text"), cache_implementation="static")
