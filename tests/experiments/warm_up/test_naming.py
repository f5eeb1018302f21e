"""Visual tokens are pulled towards the embeddings of the words for what they show."""

from __future__ import annotations

import pytest
import torch

from experiments.nano.warm_up.classes import NOTHING, Classes
from experiments.nano.warm_up.heads import Naming, ids_of_names
from vl2.checkpoint.resolve import built_in_folder
from vl2.process.tokenizer import Tokenizer
from vl2.synth.sprites import Kind


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(built_in_folder() / "tokenizer.json")


def test_names_are_those_in_both_languages_and_of_every_style(tokenizer: Tokenizer) -> None:
    classes = Classes(("a", "b"), ("owl",))
    styles = [[Kind(en="owl", zh="猫头鹰")], [Kind(en="owl", zh="枭")]]
    ids = ids_of_names(classes, styles, tokenizer.encode)
    assert len(ids) == len(classes) + 1
    assert ids[NOTHING] == ids[classes.character("a") or 0] == ids[classes.space] == []
    owl = set(ids[classes.sprite("owl")])
    assert all(set(tokenizer.encode(name)) <= owl for name in ("owl", " owl", "owls", "猫头鹰", "枭"))
    red, blue = (set(ids[classes.shape("circle", color)]) for color in ("red", "blue"))
    assert set(tokenizer.encode(" circle")) <= red & blue
    assert set(tokenizer.encode("红色的圆形")) <= red
    assert not set(tokenizer.encode(" red")) & blue


def test_a_token_of_the_sum_of_its_words_has_less_loss_than_one_of_others() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(12, 32)
    naming = Naming(embeddings, [[], [3, 4], [5, 6], []])
    right = (embeddings - embeddings[3:7].mean(dim=0))[[3, 5]] + (embeddings - embeddings[3:7].mean(dim=0))[[4, 6]]
    things = torch.tensor([[1, NOTHING], [2, NOTHING]])
    low, is_right = naming(right, things)
    high, is_wrong = naming(right.flip(0), things)
    assert low < 0.7 * high
    assert is_right.tolist() == [True] * 4
    assert is_wrong.tolist() == [False] * 4


def test_it_learns_by_moving_the_tokens_and_not_the_embeddings() -> None:
    torch.manual_seed(0)
    embeddings = torch.randn(12, 16, requires_grad=True)
    naming = Naming(embeddings, [[], [3, 4], [5, 6], []])
    tokens = torch.randn(3, 16, requires_grad=True)
    # The last token shows what has no name: it is left alone.
    naming(tokens, torch.tensor([[1, 2], [2, NOTHING], [3, NOTHING]]))[0].backward()
    assert embeddings.grad is None
    assert tokens.grad is not None
    assert tokens.grad[:2].abs().sum() > 0
    assert not tokens.grad[2].any()


def test_a_batch_in_which_nothing_has_a_name_has_no_loss() -> None:
    naming = Naming(torch.randn(8, 4), [[], [3], []])
    loss, is_right = naming(torch.randn(2, 4), torch.tensor([[NOTHING], [2]]))
    assert loss == 0
    assert not len(is_right)
