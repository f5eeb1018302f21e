"""What does not fit is refused in one line that names it, and nothing is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.assemble.hub_models import save_deepseek_moe, save_deepseek_v2, save_siglip
from vl2.assemble import assemble_checkpoint
from vl2.errors import UserError

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    save_deepseek_v2(folder / "language")
    save_deepseek_moe(folder / "moe")
    save_siglip(folder / "vision")
    return folder


def changed(source: Path, to: Path, *, tensors: Callable[[Tensors], Any] | None = None, **settings: Any) -> Path:
    """Write a copy of a model whose tensors or settings are changed; a setting of None is left out."""
    to.mkdir()
    for file in source.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    if tensors is not None:
        stored = load_file(to / "model.safetensors")
        tensors(stored)
        save_file(stored, to / "model.safetensors")
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    config |= settings
    config = {key: value for key, value in config.items() if settings.get(key, 0) is not None}
    (to / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return to


def refusal(language: str | Path, vision: str | Path, out: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        assemble_checkpoint(str(language), str(vision), out, **options)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def renamed(old: str, new: str) -> Callable[[Tensors], Any]:
    return lambda stored: stored.update({new: stored.pop(old)})


NORM = "model.layers.1.input_layernorm.weight"
EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"
BLOCK = "vision_model.encoder.layers.1.mlp.fc1.weight"

WRONG_LANGUAGE: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("missing", lambda stored: stored.pop(EXPERT), f"lacks 1 tensors: {EXPERT}"),
    ("unknown", lambda stored: stored.update(extra=torch.zeros(2)), "that config.json does not describe: extra"),
    ("renamed", renamed(NORM, "model.layers.1.norm1.weight"), f"lacks 1 tensors: {NORM}"),
    ("shape", lambda stored: stored.update({NORM: torch.zeros(31)}), f"{NORM} is [31], config.json says [32]"),
    ("type", lambda stored: stored.update({NORM: torch.zeros(32, dtype=torch.int8)}), f"holds {NORM} as torch.int8"),
]  # fmt: skip
WRONG_VISION: list[tuple[str, Callable[[Tensors], Any], str]] = [
    ("missing", lambda stored: stored.pop(BLOCK), f"lacks 1 tensors: {BLOCK}"),
    (
        "unknown",
        lambda stored: stored.update({"vision_model.cls": torch.zeros(2)}),
        "1 tensors that config.json does not describe: vision_model.cls",
    ),
    (
        "shape",
        lambda stored: stored.update({BLOCK: torch.zeros(99, 36)}),
        f"{BLOCK} is [99, 36], config.json says [100",
    ),
    (
        "positions",
        lambda stored: stored.update({"vision_model.embeddings.position_embedding.weight": torch.zeros(16, 36)}),
        "position_embedding.weight is [16, 36], config.json says [25, 36]",
    ),
]


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in WRONG_LANGUAGE], ids=[c[0] for c in WRONG_LANGUAGE])
def test_a_tensor_of_the_language_model_is_named(hub: Path, tmp_path: Path, change: Any, message: str) -> None:
    language = changed(hub / "language", tmp_path / "language", tensors=change)
    assert message in refusal(language, hub / "vision", tmp_path / "out")


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in WRONG_VISION], ids=[c[0] for c in WRONG_VISION])
def test_a_tensor_of_the_encoder_is_named(hub: Path, tmp_path: Path, change: Any, message: str) -> None:
    vision = changed(hub / "vision", tmp_path / "vision", tensors=change)
    assert message in refusal(hub / "language", vision, tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("language", {"model_type": "llama"}, "model_type must be 'deepseek_v2' or 'deepseek', got 'llama'"),
        ("language", {"kv_lora_rank": None}, "config.json has no kv_lora_rank"),
        ("language", {"norm_topk_prob": None}, "config.json has no norm_topk_prob"),
        ("language", {"rope_parameters": None}, "neither rope_theta nor rope_parameters"),
        ("language", {"hidden_act": "gelu"}, "language_config.hidden_act must be 'silu'"),
        ("language", {"tie_word_embeddings": True}, "language_config.tie_word_embeddings must be False"),
        ("language", {"rope_scaling": {"type": "linear", "factor": 2}}, "language_config.rope_scaling must be null or"),
        ("language", {"eos_token_id": 7}, "eos_token_id is 7 in config.json, and <｜end▁of▁sentence｜> is 257"),
        ("language", {"vocab_size": 200}, "gives ids up to 257, and the language model has 200 rows"),
        ("language", {"num_hidden_layers": 2}, "tensors that config.json does not describe: model.layers.2."),
        ("moe", {"rope_scaling": {"type": "yarn"}}, "language_config.rope_scaling must be null or"),
        ("vision", {"model_type": "clip"}, "is no SigLIP: config.json must have the model_type 'siglip'"),
        ("vision", {"vision_config": {"hidden_act": "gelu"}}, "hidden_act of the SigLIP"),
        ("vision", {"vision_config": {"image_size": [76, 90]}}, "image_size of the SigLIP"),
    ],
)
def test_a_setting_is_named(hub: Path, tmp_path: Path, source: str, settings: dict[str, Any], message: str) -> None:
    wrong = changed(hub / source, tmp_path / "wrong", **settings)
    parts = (hub / "language", wrong) if source == "vision" else (wrong, hub / "vision")
    assert message in refusal(*parts, tmp_path / "out")


def test_a_name_that_is_nothing_is_told(hub: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "no folder no-such-model" in refusal("no-such-model", hub / "vision", out)
    assert "random:nano, random:tiny" in refusal("random:huge", hub / "vision", out)
    assert "random:nano, random:tiny" in refusal(hub / "language", "random", out)
    assert "--tokenizer is for a random" in refusal(hub / "language", hub / "vision", out, tokenizer="tokenizer.json")
    assert "dtype must be" in refusal(hub / "language", hub / "vision", out, dtype="int8")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"no config.json in {empty}" in refusal(empty, hub / "vision", out)
    (empty / "config.json").write_text("[", encoding="utf-8")
    assert "is not valid JSON" in refusal(hub / "language", empty, out)


def test_weights_that_could_run_code_are_not_read(hub: Path, tmp_path: Path) -> None:
    language = changed(hub / "language", tmp_path / "language")
    (language / "model.safetensors").rename(language / "pytorch_model.bin")
    assert "only safetensors are loaded" in refusal(language, hub / "vision", tmp_path / "out")


def test_what_is_left_out_is_counted_by_what_it_is(hub: Path, tmp_path: Path) -> None:
    language = changed(
        hub / "moe",
        tmp_path / "language",
        tensors=lambda stored: stored.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}),
    )
    made = assemble_checkpoint(str(language), str(hub / "vision"), tmp_path / "out")
    text_tower = [name for name in load_file(hub / "vision" / "model.safetensors") if name.startswith("text_model.")]
    assert made.left_out == {"rotary frequencies": 1, "text tower": len(text_tower), "logit scale and bias": 2}


def test_an_existing_folder_is_kept(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="exists"):
        assemble_checkpoint(str(hub / "language"), str(hub / "vision"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
