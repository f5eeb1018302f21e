"""Two processes that divide the experts answer like one, hold half of the experts each, and fail together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.reference import CHECKPOINTS, assert_near, messages_of
from tests.train.two_ranks import TwoRanks
from vl2.checkpoint import LoadOptions, load_model, quantize_checkpoint
from vl2.checkpoint.expert_share import ExpertShare, expert_stacks
from vl2.errors import RankLost, UserError
from vl2.expert_parallel import follower
from vl2.expert_parallel.follower import follow
from vl2.expert_parallel.leader import Leader
from vl2.infer.vlm import VLM, load
from vl2.process.decode import RELEASED_OPTIONS
from vl2.process.sample import collate
from vl2.train.ranks import Ranks

NUM_TOKENS = 6


@pytest.fixture(scope="module")
def pair() -> Iterator[TwoRanks]:
    ranks = TwoRanks()
    yield ranks
    ranks.close()


def answers(vlm: VLM, size: str, case: str) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Return the logits of a prompt with pictures, and the greedy tokens of a batch."""
    messages = messages_of(size, case)
    with torch.inference_mode():
        logits = vlm.model(collate([vlm.processor.encode(messages)])).logits[0]
    text = [{"role": "user", "content": "What is this?"}]
    return logits, [reply.token_ids for reply in vlm.batch([messages, text], max_new_tokens=NUM_TOKENS)]


def answer_over_ranks(ranks: Ranks, folder: Path, size: str, case: str, options: dict[str, Any]) -> Any:
    """The scenario of a command that answers: the first rank asks, the other follows."""
    if not ranks.is_first:
        follow(ranks)
        return None
    leader = Leader(ranks)
    try:
        vlm = load(folder, device="cpu", image_options=RELEASED_OPTIONS, load_weights=leader.load, **options)
        return answers(vlm, size, case)
    finally:
        leader.stop()


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("weights", ["auto", "int4"])
def test_two_ranks_give_the_logits_and_tokens_of_one_process(size: str, weights: str, pair: TwoRanks) -> None:
    options = {"weights": weights}
    (logits, tokens), nothing = pair.run(answer_over_ranks, CHECKPOINTS / size, size, "single", options)
    assert nothing is None
    alone = load(CHECKPOINTS / size, device="cpu", image_options=RELEASED_OPTIONS, weights=weights)
    expected, expected_tokens = answers(alone, size, "single")
    assert_near(logits, expected)
    assert tokens == expected_tokens
    assert all(len(answer) == NUM_TOKENS for answer in tokens)


def test_a_quantized_folder_is_divided_too(pair: TwoRanks, tmp_path: Path) -> None:
    folder = tmp_path / "int8"
    quantize_checkpoint(CHECKPOINTS / "tiny", folder, weights="int8")
    (logits, tokens), _ = pair.run(answer_over_ranks, folder, "tiny", "text", {})
    alone = load(folder, device="cpu", image_options=RELEASED_OPTIONS)
    expected, expected_tokens = answers(alone, "tiny", "text")
    assert_near(logits, expected)
    assert tokens == expected_tokens


def loaded_bytes(rank: int, size: int, *, only_experts: bool) -> tuple[int, int]:
    """Return the bytes of the experts and of all else that a rank of tiny loads."""
    share = ExpertShare(rank=rank, size=size, only_experts=only_experts)
    model = load_model(CHECKPOINTS / "tiny", LoadOptions(only_answers=True, experts=share))
    in_experts = sum(p.nbytes for _, experts in expert_stacks(model) for p in experts.parameters())
    held = sum(p.nbytes for p in model.parameters() if not p.is_meta)
    return in_experts, held - in_experts


def test_each_rank_holds_its_share_of_the_experts_and_only_the_first_holds_the_rest() -> None:
    whole = load_model(CHECKPOINTS / "tiny")
    in_experts = sum(p.nbytes for _, experts in expert_stacks(whole) for p in experts.parameters())
    rest = sum(p.nbytes for p in whole.parameters()) - in_experts
    assert loaded_bytes(0, 2, only_experts=False) == (in_experts // 2, rest)
    assert loaded_bytes(1, 2, only_experts=True) == (in_experts // 2, 0)
    # 8 experts on 3 ranks: 2, 3 and 3.
    shares = [loaded_bytes(rank, 3, only_experts=True)[0] for rank in range(3)]
    assert [8 * share // in_experts for share in shares] == [2, 3, 3]


class Failing(nn.Module):
    def forward(self, x_ND: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA out of memory, in this test\nand more")


def fail_in_experts(ranks: Ranks) -> list[str]:
    if not ranks.is_first:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(follower, "fast_experts", lambda experts: Failing())
            with pytest.raises(RankLost) as error:
                follow(ranks)
        return [str(error.value)]
    noticed: list[str] = []
    leader = Leader(ranks, on_failure=lambda error: noticed.append(str(error)))
    vlm = load(CHECKPOINTS / "tiny", device="cpu", load_weights=leader.load)
    seen = []
    for _ in range(2):  # the second call fails at once, without the other rank
        with pytest.raises(RankLost) as error:
            vlm.chat("What is this?", max_new_tokens=2)
        seen.append(str(error.value))
    leader.stop()
    return [*noticed, *seen]


def test_experts_that_fail_on_one_rank_end_both_with_the_same_line(pair: TwoRanks) -> None:
    line = "rank 1 of 2: CUDA out of memory, in this test"
    assert pair.run(fail_in_experts) == [[line] * 3, [line]]


def fail_to_load(ranks: Ranks) -> str:
    if not ranks.is_first:
        with pytest.MonkeyPatch.context() as patch:

            def refuse(*_: object) -> None:
                raise UserError("no folder /models/tiny on this machine")

            patch.setattr(follower, "load_model", refuse)
            with pytest.raises(RankLost) as error:
                follow(ranks)
        return str(error.value)
    leader = Leader(ranks)
    with pytest.raises(RankLost) as error:
        load(CHECKPOINTS / "tiny", device="cpu", load_weights=leader.load)
    leader.stop()
    return str(error.value)


def test_a_rank_that_cannot_load_ends_both_with_the_same_line(pair: TwoRanks) -> None:
    line = "rank 1 of 2: no folder /models/tiny on this machine"
    assert pair.run(fail_to_load) == [line, line]


def stop_before_loading(ranks: Ranks) -> str:
    if not ranks.is_first:
        follow(ranks)
        return "ended"
    Leader(ranks).stop()
    return "stopped"


def test_the_others_end_if_the_first_never_loads_a_model(pair: TwoRanks) -> None:
    assert pair.run(stop_before_loading) == ["stopped", "ended"]


def refuse_by_arguments(ranks: Ranks, options: dict[str, Any]) -> str | None:
    if not ranks.is_first:
        with pytest.raises(RankLost):
            follow(ranks)
        return None
    leader = Leader(ranks)
    with pytest.raises(UserError) as error:
        load(CHECKPOINTS / "tiny", device="cpu", load_weights=leader.load, **options)
    leader.stop()
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"), [({"memory": "8GB"}, "one process only"), ({"adapter": "x"}, "one process")]
)
def test_what_needs_a_whole_model_is_refused_in_one_line(options: dict[str, Any], message: str, pair: TwoRanks) -> None:
    said, _ = pair.run(refuse_by_arguments, options)
    assert message in said
    assert "\n" not in said
