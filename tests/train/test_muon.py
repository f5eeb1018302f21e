"""Muon: orthogonal updates, equal to PyTorch's own where that has a matrix, and stacks as their matrices one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.train.two_ranks import TwoRanks
from vl2.config import preset
from vl2.errors import UserError
from vl2.model import VL2
from vl2.train.muon import muon_, orthogonalize, split_joined
from vl2.train.optimizer import MasterAdamW
from vl2.train.parts import ParameterGroup, parameter_groups
from vl2.train.ranks import Ranks
from vl2.train.stage import STAGES, Stage


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((24, 40), (40, 24), (3, 16, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.3
    assert torch.equal(orthogonalize(torch.zeros(4, 6)).float(), torch.zeros(4, 6))


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_a_matrix_moves_as_by_pytorchs_own(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    theirs = nn.Parameter(torch.randn(shape))
    ours, momentum = theirs.detach().clone(), torch.zeros(shape)
    optimizer = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        theirs.grad = torch.randn(shape)
        muon_([ours], [theirs.grad], [momentum], learning_rate=0.02, weight_decay=0.1)
        optimizer.step()
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-3, rtol=0)  # the iteration is in bfloat16


def test_a_stack_moves_as_its_matrices() -> None:
    torch.manual_seed(2)
    stack, gradient = torch.randn(4, 8, 12), torch.randn(4, 8, 12)
    alone = [matrix.clone() for matrix in stack]
    muon_([stack], [gradient], [torch.zeros_like(stack)], learning_rate=0.1, weight_decay=0.0)
    for matrix, own in zip(alone, gradient, strict=True):
        muon_([matrix], [own], [torch.zeros_like(own)], learning_rate=0.1, weight_decay=0.0)
    torch.testing.assert_close(stack, torch.stack(alone), atol=1e-3, rtol=0)


SHAPES = ((5, 8, 12), (12, 8), (6, 6), (6, 6))  # an odd number of one shape, one alone, which one rank has none of


def move(ranks: Ranks) -> list[torch.Tensor]:
    """Return what matrices become in three steps."""
    torch.manual_seed(5)
    masters = [torch.randn(shape) for shape in SHAPES]
    momenta = [torch.zeros(shape) for shape in SHAPES]
    for _ in range(3):
        gradients = [torch.randn(shape) for shape in SHAPES]
        muon_(masters, gradients, momenta, learning_rate=0.1, weight_decay=0.1, ranks=ranks)
    return masters


def test_two_ranks_share_the_work_and_come_to_the_same(pair: TwoRanks) -> None:
    alone = move(Ranks(rank=0, size=1, device=torch.device("cpu")))
    first, second = pair.run(move)
    for matrix, a, b in zip(alone, first, second, strict=True):
        assert torch.equal(a, b), "ranks must not drift apart"
        torch.testing.assert_close(a, matrix, atol=1e-3, rtol=0)  # the iteration is in bfloat16


@pytest.mark.parametrize(
    ("name", "shape", "parts"),
    [
        ("mlp.experts.gate_up_proj", (4, 12, 6), 2),
        ("blocks.0.attn.qkv.weight", (18, 6), 3),
        ("o_proj.weight", (6, 6), 1),
    ],
)
def test_joined_matrices_move_each_by_itself(name: str, shape: tuple[int, ...], parts: int) -> None:
    torch.manual_seed(3)
    parameter = nn.Parameter(torch.randn(shape))
    alone = parameter.detach().clone()
    group = ParameterGroup(
        names=(name,), parameters=(parameter,), rate_multiplier=1.0, weight_decay=0.1, is_orthogonal=True
    )
    optimizer = MasterAdamW([group], betas=(0.9, 0.95), eps=1e-8)
    gradient = torch.randn(shape)
    (parameter * gradient).sum().backward()
    optimizer.step(0.1)
    assert split_joined(name, alone).shape[-2:] == (shape[-2] // parts, shape[-1])
    for part, own in zip(alone.chunk(parts, dim=-2), gradient.chunk(parts, dim=-2), strict=True):
        moved, momentum = part.clone(), torch.zeros_like(part)
        muon_([moved], [own.contiguous()], [momentum], learning_rate=0.1, weight_decay=0.1)
        part.copy_(moved)
    torch.testing.assert_close(parameter.detach(), alone, atol=1e-4, rtol=0)


def stage(**values: object) -> Stage:
    base = {"name": "s", "learning_rate": 1e-3, "schedule": "constant", "warmup_steps": 0, "balance_loss_weight": 0.0,
            "num_steps": 1, "batch_size": 1, "is_packed": True, "mask_prompt": False}  # fmt: skip
    return Stage(**{**base, **values})  # type: ignore[arg-type]


def test_only_matrices_of_the_blocks_are_muons() -> None:
    with torch.device("meta"):
        model = VL2(preset("nano"))
    groups = parameter_groups(model, stage(optimizer="muon"))
    by_muon = {name for group in groups if group.is_orthogonal for name in group.names}
    by_adamw = {name for group in groups if not group.is_orthogonal for name in group.names}
    assert "language.model.layers.1.mlp.experts.gate_up_proj" in by_muon
    assert "vision.blocks.0.attn.qkv.weight" in by_muon
    for name in ("language.model.embed_tokens.weight", "language.lm_head.weight", "vision.pos_embed",
                 "vision.patch_embed.proj.weight", "language.model.layers.1.mlp.gate.weight",
                 "vision.blocks.0.norm1.weight", "image_newline"):  # fmt: skip
        assert name in by_adamw
    assert all(not group.is_orthogonal for group in parameter_groups(model, stage()))
    assert all(s.optimizer == "adamw" for size in STAGES.values() for s in size.values())


def test_it_takes_up_where_it_was() -> None:
    def make() -> tuple[nn.Parameter, MasterAdamW]:
        torch.manual_seed(3)
        weight = nn.Parameter(torch.randn(8, 8))
        group = ParameterGroup(
            names=("w",), parameters=(weight,), rate_multiplier=1.0, weight_decay=0.1, is_orthogonal=True
        )
        return weight, MasterAdamW([group], betas=(0.9, 0.95), eps=1e-8)

    def step(weight: nn.Parameter, optimizer: MasterAdamW, seed: int) -> None:
        (weight * torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))).sum().backward()
        optimizer.step(0.01)
        optimizer.zero()

    weight, optimizer = make()
    step(weight, optimizer, 1)
    saved = {key: value if isinstance(value, int) else {k: t.clone() for k, t in value.items()}
             for key, value in optimizer.state_dict().items()}  # fmt: skip
    step(weight, optimizer, 2)
    resumed, other = make()
    other.load_state_dict(saved)
    step(resumed, other, 2)
    assert torch.equal(weight, resumed)


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(UserError, match="optimizer must be one of adamw, muon, got 'sgd'"):
        stage(optimizer="sgd")
    with pytest.raises(UserError, match="a bfloat16 optimizer is AdamW"):
        stage(optimizer="muon", is_bfloat16_optimizer=True)
