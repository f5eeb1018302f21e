"""The configuration: the published sizes, the defaults that files leave out, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from vl2.config import ModelConfig, preset
from vl2.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "reference" / "checkpoints"
SIZES = ("tiny", "small", "base")

# arXiv 2412.10302, table 1, and the released config.json files with the defaults of their classes.
LANGUAGE: dict[str, tuple[Any, Any, Any]] = {
    "vocab_size": (129280, 102400, 129280),
    "hidden_size": (1280, 2048, 2560),
    "intermediate_size": (6848, 10944, 12288),
    "moe_intermediate_size": (896, 1408, 1536),
    "num_hidden_layers": (12, 27, 30),
    "num_attention_heads": (10, 16, 32),
    "num_kv_heads": (10, 16, 32),
    "n_shared_experts": (2, 2, 2),
    "n_routed_experts": (64, 64, 72),
    "num_experts_per_tok": (6, 6, 6),
    "routed_scaling_factor": (1.0, 1.0, 2.0),
    "use_mla": (False, True, True),
    "kv_lora_rank": (None, 512, 512),
    "q_lora_rank": (None, None, None),
    "qk_nope_head_dim": (0, 128, 128),
    "qk_rope_head_dim": (0, 64, 64),
    "v_head_dim": (0, 128, 128),
    "scoring_func": ("softmax", "softmax", "sigmoid"),
    "topk_method": ("greedy", "greedy", "noaux_tc"),
    "has_expert_bias": (False, False, True),
    "norm_topk_prob": (False, False, True),
    "n_group": (1, 1, 1),
    "topk_group": (1, 1, 1),
    "first_k_dense_replace": (1, 1, 1),
    "moe_layer_freq": (1, 1, 1),
    "aux_loss_alpha": (0.001, 0.001, 0.001),
    "seq_aux": (True, True, True),
    "max_position_embeddings": (4096, 4096, 4096),
    "initializer_range": (0.02, 0.02, 0.02),
    "rms_norm_eps": (1e-6, 1e-6, 1e-6),
    "rope_theta": (10000.0, 10000.0, 10000.0),
    "attention_bias": (False, False, False),
    "bos_token_id": (0, 100000, 0),
    "eos_token_id": (1, 100001, 1),
}  # fmt: skip


@pytest.mark.parametrize("key", LANGUAGE)
def test_the_language_model_has_the_published_sizes(key: str) -> None:
    assert tuple(getattr(preset(size).language_config, key) for size in SIZES) == LANGUAGE[key]


@pytest.mark.parametrize(("size", "width"), [("tiny", 1280), ("small", 2048), ("base", 2560)])
def test_vision_encoder_and_projector_have_the_published_sizes(size: str, width: int) -> None:
    config = preset(size)
    vision = config.vision_config
    assert (vision.image_size, vision.patch_size, vision.patches_per_side) == (384, 14, 27)
    assert (vision.width, vision.layers, vision.heads, vision.mlp_width) == (1152, 27, 16, 4304)
    assert vision.global_pool == "map"
    assert dataclasses.astuple(config.projector_config) == (1152, width, 2)
    assert config.tokens_per_side == 14
    assert config.torch_dtype == "bfloat16"


def test_nano_is_the_largest_model_made_small() -> None:
    nano, base = preset("nano"), preset("base")
    for key in ("scoring_func", "topk_method", "norm_topk_prob", "routed_scaling_factor", "use_mla"):
        assert getattr(nano.language_config, key) == getattr(base.language_config, key), key
    assert (nano.vision_config.patches_per_side, nano.tokens_per_side) == (12, 6)
    assert (nano.language_config.vocab_size, nano.language_config.hidden_size) == (4096, 256)
    assert nano.torch_dtype == "float32"


@pytest.mark.parametrize("size", SIZES)
def test_only_the_first_layer_is_dense(size: str) -> None:
    language = preset(size).language_config
    is_moe = [language.is_moe_layer(index) for index in range(language.num_hidden_layers)]
    assert is_moe == [False] + [True] * (language.num_hidden_layers - 1)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("language_config", "vocab_size", 102400),
        ("language_config", "bos_token_id", 100000),
        ("language_config", "eos_token_id", 100001),
        ("language_config", "kv_lora_rank", 512),
        ("language_config", "qk_rope_head_dim", 64),
        ("language_config", "use_mla", True),
        ("language_config", "scoring_func", "softmax"),
        ("language_config", "norm_topk_prob", False),
        ("projector_config", "n_embed", 2048),
        ("projector_config", "input_dim", 1152),
        ("vision_config", "image_size", 384),
        ("vision_config", "heads", 16),
        ("vision_config", "global_pool", "map"),
    ],
)
def test_keys_that_the_file_of_small_leaves_out_get_the_released_defaults(part: str, key: str, value: object) -> None:
    config = preset("small")
    assert key not in config.source[part]
    assert getattr(getattr(config, part), key) == value


def test_a_missing_number_of_key_heads_means_one_per_head() -> None:
    values = changed("small", language_config={"num_key_value_heads": None})
    assert ModelConfig.from_dict(values).language_config.num_kv_heads == 16


def test_keys_that_change_no_arithmetic_are_carried() -> None:
    values = changed("tiny", transformers_version="9.9", _name_or_path="somewhere")
    written = ModelConfig.from_dict(values).to_dict()
    assert written == values


def test_a_changed_value_is_written_even_if_the_file_left_it_out() -> None:
    config = preset("small")
    larger = dataclasses.replace(config, language_config=dataclasses.replace(config.language_config, vocab_size=102500))
    written = larger.to_dict()
    assert written["language_config"]["vocab_size"] == 102500
    assert ModelConfig.from_dict(written) == larger
    assert "vocab_size" not in config.to_dict()["language_config"]


def test_a_stretched_context_is_read_and_written() -> None:
    written = changed("small", language_config={"rope_scaling": YARN})
    config = ModelConfig.from_dict(written)
    assert config.to_dict() == written
    # By hand: 0.1 * 0.707 * ln 40 + 1 = 1.2608.
    assert config.language_config.rope_scaling.softmax_scale == pytest.approx(1.2608**2, rel=1e-4)
    assert config.language_config.rope_scaling.rotated_scale == 1
    assert preset("small").language_config.rope_scaling is None


@pytest.mark.parametrize("name", SIZES)
def test_checkpoints_of_the_released_layout_are_read_and_written_back(name: str) -> None:
    path = GOLDEN / name / "config.json"
    assert ModelConfig.from_file(path).to_dict() == json.loads(path.read_text(encoding="utf-8"))


def changed(size: str, **changes: Any) -> dict[str, Any]:
    """Return the keys of a preset with some changed; a dict changes keys inside its part."""
    values = copy.deepcopy(preset(size).to_dict())
    for key, value in changes.items():
        if isinstance(value, dict):
            values[key].update(value)
        else:
            values[key] = value
    return values


# As DeepSeek-V2-Lite has it.
YARN = {
    "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096, "type": "yarn",
}  # fmt: skip

UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    ("tile_tag", {"tile_tag": "1D"}),
    ("global_view_pos", {"global_view_pos": "tail"}),
    ("language_config.hidden_act", {"language_config": {"hidden_act": "gelu"}}),
    ("language_config.rope_scaling", {"language_config": {"rope_scaling": {"type": "yarn", "factor": 40}}}),
    ("language_config.rope_scaling.type", {"language_config": {"rope_scaling": {**YARN, "type": "linear"}}}),
    ("language_config.rope_scaling", {"language_config": {"rope_scaling": {**YARN, "attention_factor": 2}}}),
    ("language_config.tie_word_embeddings", {"language_config": {"tie_word_embeddings": True}}),
    ("language_config.attention_dropout", {"language_config": {"attention_dropout": 0.1}}),
    ("language_config.ep_size", {"language_config": {"ep_size": 8}}),
    ("topk_method", {"language_config": {"topk_method": "gready"}}),
    ("scoring_func", {"language_config": {"scoring_func": "tanh"}}),
    ("vision_config.class_token", {"vision_config": {"class_token": True}}),
    ("vision_config.num_classes", {"vision_config": {"num_classes": 1000}}),
    ("vision_config.ignore_head", {"vision_config": {"ignore_head": False}}),
    ("global_pool", {"vision_config": {"global_pool": "avg"}}),
    ("projector_config.projector_type", {"projector_config": {"projector_type": "linear"}}),
    ("projector_config.depth", {"projector_config": {"depth": 3}}),
    ("projector_config.token_pooling", {"projector_config": {"token_pooling": True}}),
]


@pytest.mark.parametrize(("key", "changes"), UNSUPPORTED, ids=[key for key, _ in UNSUPPORTED])
def test_an_unsupported_value_is_refused_by_name_in_one_line(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        ModelConfig.from_dict(changed("base", **changes))
    assert str(caught.value).startswith(f"{key} must be")
    assert "\n" not in str(caught.value)


INCONSISTENT: list[tuple[str, str, dict[str, Any]]] = [
    ("hidden_size", "tiny", {"language_config": {"hidden_size": 1284}, "projector_config": {"n_embed": 1284}}),
    ("num_attention_heads", "tiny", {"language_config": {"num_key_value_heads": 3}}),
    ("rope_scaling must be null without latent", "tiny", {"language_config": {"rope_scaling": YARN}}),
    ("even", "small", {"language_config": {"qk_rope_head_dim": 63}}),
    ("kv_lora_rank", "small", {"language_config": {"kv_lora_rank": None}}),
    ("num_experts_per_tok", "base", {"language_config": {"num_experts_per_tok": 73}}),
    ("num_experts_per_tok", "base", {"language_config": {"num_experts_per_tok": None}}),
    ("num_experts_per_tok", "base", {"language_config": {"n_group": 36, "topk_group": 2}}),
    ("n_routed_experts", "base", {"language_config": {"n_group": 5}}),
    ("topk_group", "base", {"language_config": {"n_group": 4, "topk_group": 5}}),
    ("n_group", "base", {"language_config": {"n_group": 72, "topk_group": 72}}),
    ("vocab_size", "base", {"language_config": {"vocab_size": 0}}),
    ("num_hidden_layers", "base", {"language_config": {"num_hidden_layers": True}}),
    ("num_hidden_layers", "base", {"language_config": {"num_hidden_layers": "30"}}),
    ("width", "base", {"vision_config": {"heads": 7}}),
    ("image_size", "base", {"vision_config": {"image_size": 13}}),
    ("projector_config.input_dim", "base", {"projector_config": {"input_dim": 1024}}),
    ("projector_config.n_embed", "base", {"projector_config": {"n_embed": 2048}}),
]


@pytest.mark.parametrize(("name", "size", "changes"), INCONSISTENT)
def test_sizes_that_do_not_fit_together_are_refused(name: str, size: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        ModelConfig.from_dict(changed(size, **changes))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["language_config", "vision_config", "projector_config"])
def test_a_file_of_another_model_is_refused(part: str) -> None:
    values = changed("tiny")
    del values[part]
    with pytest.raises(UserError, match=part):
        ModelConfig.from_dict(values)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no config.json"), ("{", "not valid JSON"), ("[1]", "JSON object, got list"), ("\xff", "not valid JSON")],
)
def test_a_file_that_cannot_be_read_is_the_users_error(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        ModelConfig.from_file(path)


def test_an_unknown_preset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"'nano', 'tiny', 'small', 'base'.*'huge'"):
        preset("huge")


def test_a_configuration_cannot_be_changed() -> None:
    config = preset("tiny")
    for record, key in (
        (config, "language_config"),
        (config.language_config, "hidden_size"),
        (config.vision_config, "width"),
        (config.projector_config, "n_embed"),
    ):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, key, 1)


def test_writing_does_not_hand_out_the_source_that_was_read() -> None:
    config = preset("tiny")
    config.to_dict()["language_config"]["hidden_size"] = 1
    assert config.to_dict()["language_config"]["hidden_size"] == 1280
