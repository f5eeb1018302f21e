"""The assembled parts compute what the libraries' own classes compute with the same files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.assemble.hub_models import (
    EOS_ID,
    NUM_BYTES,
    NUM_TOKENS,
    VISION,
    YARN,
    make_every_weight_matter,
    save_deepseek_moe,
    save_deepseek_v2,
    save_siglip,
    save_siglip_vision_model,
)
from vl2.assemble import assemble_checkpoint
from vl2.checkpoint.load import load_model
from vl2.model import VL2
from vl2.model.mask import AttentionMask
from vl2.rope_scaling import RopeScaling

SAVE_LANGUAGE: dict[str, Callable[[Path], Any]] = {
    "DeepSeek-V2-Lite": save_deepseek_v2,
    "DeepSeek-V2-Lite, stretched context": lambda folder: save_deepseek_v2(folder, rope_parameters=YARN),
    "DeepSeek-V2, compressed queries and groups": lambda folder: save_deepseek_v2(
        folder, q_lora_rank=20, topk_method="group_limited_greedy", n_group=3, topk_group=2, routed_scaling_factor=1.5
    ),
    "DeepSeek-MoE": save_deepseek_moe,
}


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


def tiles() -> Tensor:
    side = VISION["image_size"]
    return torch.empty(2, 3, side, side).uniform_(-1, 1, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: VL2, ids_BS: Tensor) -> Tensor:
    positions_BS = torch.arange(ids_BS.shape[1]).expand_as(ids_BS)
    language = model.language
    hidden = language.model(language.embed(ids_BS), positions_BS, AttentionMask.of_rows(None))
    return language.logits(hidden.states_BSD)


@pytest.mark.parametrize("layout", SAVE_LANGUAGE)
@torch.no_grad()
def test_a_language_model_gives_the_logits_of_transformers(layout: str, tmp_path: Path) -> None:
    theirs = SAVE_LANGUAGE[layout](tmp_path / "language")
    save_siglip(tmp_path / "vision")
    made = assemble_checkpoint(
        str(tmp_path / "language"), str(tmp_path / "vision"), tmp_path / "out", dtype="float32", max_shard_bytes=50_000
    )
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    ids_BS = torch.randint(NUM_BYTES, (2, 100), generator=torch.Generator().manual_seed(2))
    ids_BS[:, -1] = EOS_ID
    expected = theirs(ids_BS).logits
    found = logits(load_model(tmp_path / "out"), ids_BS)
    assert found.shape[-1] == made.vocabulary.rows > NUM_TOKENS
    assert relative(found[..., :NUM_TOKENS], expected) < 1e-5


@torch.no_grad()
def test_the_stretched_context_matters_in_the_comparison_above(tmp_path: Path) -> None:
    """Without YaRN's frequencies or scales the logits would be others."""
    plain = save_deepseek_v2(tmp_path / "plain")
    stretched = save_deepseek_v2(tmp_path / "stretched", rope_parameters=YARN)
    ids_BS = torch.arange(100).unsqueeze(0)
    assert relative(plain(ids_BS).logits, stretched(ids_BS).logits) > 0.01
    values = {**YARN, "type": "yarn"}
    del values["rope_type"], values["rope_theta"]
    scaling = RopeScaling.from_dict(values)
    assert scaling.rotated_scale > 1.03
    assert scaling.softmax_scale > 1.2


@pytest.mark.parametrize("save", [save_siglip, save_siglip_vision_model], ids=["whole", "vision model alone"])
@torch.no_grad()
def test_an_encoder_gives_the_features_of_transformers(save: Callable[[Path], Any], tmp_path: Path) -> None:
    theirs = save(tmp_path / "vision")
    assemble_checkpoint("random:nano", str(tmp_path / "vision"), tmp_path / "out", dtype="float32")
    expected = theirs(tiles()).last_hidden_state
    assert relative(load_model(tmp_path / "out").vision(tiles()), expected) < 1e-5


@torch.no_grad()
def test_an_encoder_gives_the_features_of_timm(tmp_path: Path) -> None:
    """In timm this architecture computes the exact GELU by default; SigLIP was trained with the tanh form."""
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf  # type: ignore[import-not-found, unused-ignore]

    shape = {"embed_dim": 36, "depth": 3, "num_heads": 3, "img_size": 76, "mlp_ratio": 100 / 36 + 1e-6}
    theirs = timm.create_model("vit_so400m_patch14_siglip_384", num_classes=0, act_layer="gelu_tanh", **shape).eval()
    make_every_weight_matter(theirs)
    save_for_hf(theirs, tmp_path / "vision", model_args={**shape, "act_layer": "gelu_tanh"}, safe_serialization=True)
    made = assemble_checkpoint("random:nano", str(tmp_path / "vision"), tmp_path / "out", dtype="float32")
    assert made.left_out == {}
    ours = load_model(tmp_path / "out").vision
    assert relative(ours(tiles()), theirs.forward_features(tiles())) < 1e-5
    stored = theirs.state_dict()
    assert {f"vision.{name}" for name in stored} == {f"vision.{name}" for name in ours.state_dict()}
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in stored.items())


@torch.no_grad()
def test_the_attention_pool_is_carried_as_the_released_files_have_it(tmp_path: Path) -> None:
    theirs = save_siglip(tmp_path / "vision")
    assemble_checkpoint("random:nano", str(tmp_path / "vision"), tmp_path / "out", dtype="float32")
    pool = load_model(tmp_path / "out").vision.attn_pool
    assert pool is not None
    # Queries of the probe, keys and values of the patches, by the matrices as they are now named.
    patches = theirs(tiles()).last_hidden_state
    k, v = pool.kv(patches).unflatten(-1, (2, 3, -1)).permute(2, 0, 3, 1, 4)
    q = pool.q(pool.latent.expand(2, -1, -1)).unflatten(-1, (3, -1)).transpose(1, 2)
    mixed = pool.proj(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    pooled = (mixed + pool.mlp(pool.norm(mixed)))[:, 0]
    assert relative(pooled, theirs(tiles()).pooler_output) < 1e-5
