"""Sampling rules on hand-made logits, against their definitions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl2.errors import UserError
from vl2.infer.ngram_guard import ban_repeated_ngrams
from vl2.infer.sampling import (
    LEAST_TEMPERATURE,
    GenerateOptions,
    add_bias,
    choose_token,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_generated,
    penalize_repetition,
)

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, -3.0])


def kept(logits: torch.Tensor) -> list[int]:
    return logits.isfinite().nonzero().flatten().tolist()


def draw(options: GenerateOptions, logits: torch.Tensor = LOGITS, count: int = 200) -> list[int]:
    generator = torch.Generator().manual_seed(options.seed or 0)
    return [choose_token(logits, options, seen_ids=set(), new_ids=[], generator=generator) for _ in range(count)]


def test_temperature_zero_takes_the_largest() -> None:
    assert set(draw(GenerateOptions())) == {0}


def test_top_k_keeps_the_largest_and_their_equals() -> None:
    assert kept(keep_top_k(LOGITS, 2)) == [0, 1]
    assert kept(keep_top_k(torch.tensor([1.0, 3.0, 1.0, 0.0]), 2)) == [0, 1, 2]
    assert kept(keep_top_k(LOGITS, 99)) == [0, 1, 2, 3, 4]


def test_top_p_keeps_the_fewest_that_reach_the_sum() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    for p, expected in ((0.4, [0]), (0.6, [0, 1]), (0.79, [0, 1]), (0.9, [0, 1, 2]), (0.999, [0, 1, 2, 3])):
        assert kept(keep_top_p(probabilities.log(), p)) == expected
    assert kept(keep_top_p(torch.tensor([0.0, 5.0, 0.0]), 1e-9)) == [1]


def test_min_p_is_relative_to_the_likeliest() -> None:
    probabilities = torch.tensor([0.6, 0.3, 0.06, 0.04])
    assert kept(keep_min_p(probabilities.log(), 0.09)) == [0, 1, 2]
    assert kept(keep_min_p(probabilities.log(), 1.0)) == [0]


@given(values=st.lists(st.floats(-20, 20), min_size=1, max_size=30), p=st.floats(0.01, 1.0), k=st.integers(1, 40))
@settings(deadline=None, derandomize=True)
def test_no_filter_ever_removes_the_likeliest(values: list[float], p: float, k: int) -> None:
    logits = torch.tensor(values)
    for filtered in (keep_top_k(logits, k), keep_top_p(logits, p), keep_min_p(logits, p)):
        assert filtered[logits.argmax()] == logits.max()


# The ends of what a float64 and a float32 hold, the numbers next to them that do not fit the other, and usual ones.
POSITIVE = (5e-324, 1e-320, 1e-308, 1e-300, 1e-45, 1e-38, 1e-6, 0.1, 1.0, 1.3, 2.0, 1e30, 1e38, 3.5e38, 1e300, 1.7e308)
FRACTIONS = [value for value in POSITIVE if value <= 1]
EXTREME_LOGITS = st.sampled_from((-3.4e38, -1e30, -1e4, -1.5, -1e-45, -0.0, 0.0, 1e-45, 0.5, 2.0, 1e4, 1e30, 3.4e38))


@given(
    values=st.lists(EXTREME_LOGITS | st.floats(-20, 20, width=32), min_size=2, max_size=12),
    allowed=st.sets(st.integers(0, 11)),
    temperature=st.sampled_from((0.0, *POSITIVE)),
    top_p=st.sampled_from(FRACTIONS),
    top_k=st.sampled_from((0, 1, 3, 10**30)),
    min_p=st.sampled_from((0.0, *FRACTIONS)),
    penalty=st.sampled_from(POSITIVE),
    seen=st.sets(st.integers(0, 11)),
)
@settings(deadline=None, derandomize=True, max_examples=500)
def test_extreme_options_and_logits_still_give_an_allowed_id(
    values: list[float],
    allowed: set[int],
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    penalty: float,
    seen: set[int],
) -> None:
    ids = set(range(len(values)))
    options = GenerateOptions(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=penalty, seed=1
    )
    allowed_ids = (allowed & ids) or ids
    allowed_V = torch.tensor([id in allowed_ids for id in sorted(ids)])
    chosen = choose_token(
        torch.tensor(values),
        options,
        seen_ids=seen & ids,
        new_ids=[],
        generator=torch.Generator().manual_seed(1),
        allowed_V=allowed_V,
    )
    assert chosen in allowed_ids


@pytest.mark.parametrize("top_p", [5e-324, 1e-320, 1e-46])
def test_a_top_p_below_every_float32_leaves_the_likeliest(top_p: float) -> None:
    assert set(draw(GenerateOptions(temperature=1.0, top_p=top_p))) == {0}


def test_a_temperature_beyond_every_float32_makes_all_ids_equal() -> None:
    assert set(draw(GenerateOptions(temperature=1e308, seed=3))) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(("penalty", "order"), [(1e308, [2, 0, 3, 1]), (1e-308, [0, 2, 3, 1])])
def test_an_extreme_penalty_divides_and_multiplies_within_what_a_float32_holds(
    penalty: float, order: list[int]
) -> None:
    changed = penalize_repetition(torch.tensor([1.0, -3.0, 2.0, -1.0]), {0, 1} if penalty > 1 else {0}, penalty)
    assert changed.isfinite().all()
    assert changed.argsort(descending=True, stable=True).tolist() == order


def test_the_repetition_penalty_lowers_what_was_seen_and_nothing_else() -> None:
    penalised = penalize_repetition(LOGITS, [0, 3, 0], 2.0)
    assert penalised.tolist() == [1.0, 1.0, 0.5, -2.0, -3.0]
    assert LOGITS.tolist() == [2.0, 1.0, 0.5, -1.0, -3.0]


def openais_formula(
    logits: list[float], generated: list[int], *, frequency: float, presence: float, bias: dict[int, float]
) -> list[float]:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, plus the bias: in Python's own numbers, id by id."""
    return [
        mu + bias.get(j, 0.0) - generated.count(j) * frequency - (presence if j in generated else 0.0)
        for j, mu in enumerate(logits)
    ]


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    generated=st.lists(st.integers(0, 11), max_size=20),
    frequency=st.floats(-2, 2),
    presence=st.floats(-2, 2),
    bias=st.dictionaries(st.integers(0, 11), st.floats(-100, 100), max_size=4),
)
@settings(deadline=None, derandomize=True)
def test_penalties_and_bias_are_those_of_openais_formula(logits, generated, frequency, presence, bias) -> None:
    generated = [i % len(logits) for i in generated]
    bias = {i % len(logits): value for i, value in bias.items()}
    expected = openais_formula(logits, generated, frequency=frequency, presence=presence, bias=bias)
    biased = add_bias(torch.tensor(logits), bias) if bias else torch.tensor(logits)
    made = penalize_generated(biased, generated, frequency=frequency, presence=presence)
    torch.testing.assert_close(made, torch.tensor(expected), atol=1e-4, rtol=1e-5)

    options = GenerateOptions(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    chosen = choose_token(torch.tensor(logits), options, seen_ids={0}, new_ids=generated, generator=torch.Generator())
    assert expected[chosen] >= max(expected) - 1e-3


def test_penalties_count_what_was_generated_and_not_the_prompt() -> None:
    logits = torch.tensor([2.0, 1.9, 0.0])
    for changes in ({"frequency_penalty": 0.5}, {"presence_penalty": 0.5}):
        options, generator = GenerateOptions(**changes), torch.Generator()
        assert choose_token(logits, options, seen_ids={0}, new_ids=[], generator=generator) == 0
        assert choose_token(logits, options, seen_ids={0}, new_ids=[0], generator=generator) == 1


def test_a_bias_of_a_hundred_forces_and_forbids() -> None:
    assert set(draw(GenerateOptions(logit_bias={4: 100}))) == {4}
    assert set(draw(GenerateOptions(logit_bias={4: 100}, temperature=1.0, seed=0))) == {4}
    assert 0 not in draw(GenerateOptions(logit_bias={0: -100}, temperature=2.0, seed=0), count=500)
    assert GenerateOptions(logit_bias={"4": 1}).logit_bias == {4: 1.0}  # as JSON writes it


def test_a_repeated_ngram_is_forbidden() -> None:
    logits = torch.zeros(6)
    assert kept(ban_repeated_ngrams(logits, [1, 2, 3, 1, 2], 3)) == [0, 1, 2, 4, 5]
    assert kept(ban_repeated_ngrams(logits, [1, 2, 3, 2], 3)) == [0, 1, 2, 3, 4, 5]
    assert kept(ban_repeated_ngrams(logits, [4, 5], 1)) == [0, 1, 2, 3]
    assert kept(ban_repeated_ngrams(logits, [1], 3)) == [0, 1, 2, 3, 4, 5]


def test_draws_follow_the_probabilities_and_the_seed() -> None:
    options = GenerateOptions(temperature=1.0, seed=3)
    first = draw(options, count=4000)
    assert first == draw(options, count=4000)
    assert first != draw(GenerateOptions(temperature=1.0, seed=4), count=4000)
    shares = torch.bincount(torch.tensor(first), minlength=5) / 4000
    torch.testing.assert_close(shares, LOGITS.softmax(0), atol=0.03, rtol=0)


def test_a_low_temperature_sharpens() -> None:
    warm = draw(GenerateOptions(temperature=1.0, seed=0), count=1000).count(0)
    cold = draw(GenerateOptions(temperature=0.2, seed=0), count=1000).count(0)
    assert cold > 970 > 800 > warm


def test_filters_apply_together() -> None:
    drawn = draw(GenerateOptions(temperature=5.0, top_k=3, min_p=0.1, top_p=0.95, seed=1), count=500)
    assert set(drawn) == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"no_repeat_ngram_size": -2}, "no_repeat_ngram_size"),
        ({"stop": ("",)}, "stop"),
        ({"max_new_tokens": 4.5}, "max_new_tokens"),
        ({"top_k": "5"}, "top_k"),
        ({"max_repeats": True}, "max_repeats"),
        ({"top_p": "1"}, "top_p"),
        ({"temperature": float("inf")}, "temperature"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"frequency_penalty": 2.1}, "frequency_penalty"),
        ({"presence_penalty": -2.1}, "presence_penalty"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"logit_bias": {1: 101}}, "logit_bias of 1"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias of 1"),
        ({"logit_bias": {1: True}}, "logit_bias of 1"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
    ],
)
def test_an_option_out_of_range_is_named_with_what_is_allowed(changes, named: str) -> None:
    with pytest.raises(UserError, match=f"{named}.*got"):
        GenerateOptions(**changes)


def test_whole_numbers_may_come_as_floats_as_tables_write_them() -> None:
    options = GenerateOptions(max_new_tokens=4.0, seed=7.0)  # type: ignore[arg-type]
    assert (options.max_new_tokens, type(options.max_new_tokens), options.seed) == (4, int, 7)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_seed_that_is_allowed_is_one_for_the_generator(seed: int) -> None:
    torch.Generator().manual_seed(GenerateOptions(seed=seed).seed)  # type: ignore[arg-type]


def test_a_temperature_too_small_to_divide_by_is_greedy() -> None:
    assert set(draw(GenerateOptions(temperature=1e-50))) == {0}
    assert set(draw(GenerateOptions(temperature=LEAST_TEMPERATURE))) == {0}


def test_one_stop_string_may_come_alone() -> None:
    assert GenerateOptions(stop="\n").stop == ("\n",)
