"""Grown weights answer as before, and what was added can learn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.nano.grow import CONFIG, WEIGHTS, Growth, grow
from tests.reference import CHECKPOINTS
from tests.train.packs import random_pack
from vl2.checkpoint.load import load_model
from vl2.errors import UserError
from vl2.grid import UNTILED

GROWTH = Growth(layers=2, after=1, heads=6, rope_dim=24)
PARTS = (
    Growth(layers=1, after=2),
    Growth(layers=1, after=4),  # at the end
    Growth(heads=5),
    Growth(rope_dim=16),
    GROWTH,
)


@pytest.mark.parametrize("size", ["small", "base"])
@pytest.mark.parametrize("growth", PARTS)
def test_it_answers_as_before(size: str, growth: Growth, tmp_path: Path) -> None:
    grow(CHECKPOINTS / size, growth, tmp_path / "grown")
    before, after = load_model(CHECKPOINTS / size), load_model(tmp_path / "grown")
    language, grown = before.config.language_config, after.config.language_config
    assert grown.num_hidden_layers == language.num_hidden_layers + growth.layers
    assert grown.num_attention_heads == grown.num_key_value_heads == (growth.heads or language.num_attention_heads)
    assert grown.qk_rope_head_dim == (growth.rope_dim or language.qk_rope_head_dim)
    pack = random_pack(before.config, [(9, UNTILED), (30, None)])
    with torch.no_grad():
        expected, found = before.states(pack).states_BSD, after.states(pack).states_BSD
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_new_layers_heads_and_channels_learn(tmp_path: Path) -> None:
    grow(CHECKPOINTS / "base", GROWTH, tmp_path / "grown")
    model = load_model(tmp_path / "grown")
    pack = random_pack(model.config, [(9, UNTILED), (30, None)])
    language = model.config.language_config
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    model.states(pack).states_BSD.square().sum().backward()
    attention = model.language.model.layers[0].self_attn
    new_outputs = attention.o_proj.weight.grad[:, 4 * language.v_head_dim :]
    assert new_outputs.count_nonzero() == new_outputs.numel()
    queries = attention.q_proj.weight.grad.view(language.num_attention_heads, -1, language.hidden_size)
    new_pairs = queries[:4, language.qk_nope_head_dim :].unflatten(1, (-1, 2))[:, 1::3]
    assert new_pairs.count_nonzero() == new_pairs.numel()
    for layer in model.language.model.layers[1:3]:
        gradient = layer.self_attn.o_proj.weight.grad
        assert gradient.count_nonzero() == gradient.numel()


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    base, to = CHECKPOINTS / "base", tmp_path / "grown"
    for growth, message in (
        (replace(GROWTH, heads=3), "--heads must be at least 4, got 3"),
        (replace(GROWTH, rope_dim=12), "--rope-dim must be a multiple of 8, got 12"),
        (replace(GROWTH, rope_dim=4), "--rope-dim must be a multiple of 8, got 4"),
        (replace(GROWTH, after=0), r"--after in 1\.\.4"),
        (replace(GROWTH, after=5), r"--after in 1\.\.4"),
        (replace(GROWTH, layers=-1), "--layers must not be negative"),
    ):
        with pytest.raises(UserError, match=message):
            grow(base, growth, to)
    with pytest.raises(UserError, match="only latent attention"):
        grow(CHECKPOINTS / "tiny", GROWTH, to)
    with pytest.raises(UserError, match=r"no config\.json in .*none"):
        grow(tmp_path / "none", GROWTH, to)
    with pytest.raises(UserError, match="is there already"):
        grow(base, GROWTH, tmp_path)
    assert not to.exists()


def test_layers_are_not_added_to_a_model_without_experts(tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    shutil.copytree(CHECKPOINTS / "base", dense)
    text = (dense / CONFIG).read_text()
    changed = text.replace('"first_k_dense_replace": 1', '"first_k_dense_replace": 4')
    assert changed != text
    (dense / CONFIG).write_text(changed)
    with pytest.raises(UserError, match="only a model with experts can grow layers"):
        grow(dense, Growth(layers=1, after=4), tmp_path / "grown")


@pytest.mark.parametrize(("name", "content"), [(CONFIG, "{"), (CONFIG, "[]"), (WEIGHTS, "")])
def test_a_damaged_checkpoint_is_refused(name: str, content: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(CHECKPOINTS / "base", damaged)
    (damaged / name).write_text(content)
    with pytest.raises(UserError, match="damaged"):
        grow(damaged, GROWTH, tmp_path / "grown")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
