"""A folder of the DeepSeek-OCR family is told by its config.json: run, or refused by the name of what it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.ocr_family import FAMILY, NAMELESS, OCR, OCR_2, UNLIMITED, released, write_folder
from vl2.checkpoint.empty_model import build_empty
from vl2.checkpoint.model_size import ModelSize, parameters
from vl2.checkpoint.names import places
from vl2.config import OCR_PRESETS, ModelConfig, preset
from vl2.errors import UserError
from vl2.infer.vlm import load
from vl2.model_kind import model_kind


def test_each_kind_is_told_by_its_configuration() -> None:
    kinds = [model_kind(config) for config in (OCR, UNLIMITED, NAMELESS, OCR_2, preset("tiny").to_dict())]
    assert kinds == ["DeepSeek-OCR", "Unlimited-OCR", "DeepSeek-OCR", "DeepSeek-OCR-2", "DeepSeek-VL2"]
    # transformers and vLLM know the released layout of Unlimited-OCR under model types of its own.
    types = ("unlimited-ocr", "unlimited_ocr")
    assert [model_kind({**UNLIMITED, "model_type": name}) for name in types] == ["Unlimited-OCR"] * 2
    # Where no encoder is named, the name of the class or the width of the features tells.
    assert model_kind(released("DeepseekOCR2", None, 2048)) == "DeepSeek-OCR-2"
    assert model_kind(released("Tuned", None, 896)) == "DeepSeek-OCR-2"


@pytest.mark.parametrize(("config", "said"), FAMILY, ids=range(len(FAMILY)))
def test_what_is_not_run_is_refused_by_its_name(tmp_path: Path, config: dict, said: str) -> None:
    with pytest.raises(UserError, match=f"this checkpoint is {said}"):
        load(write_folder(tmp_path / "folder", config))


def test_a_fine_tuned_deepseek_vl2_called_ocr_is_deepseek_vl2() -> None:
    assert model_kind({**preset("tiny").to_dict(), "_name_or_path": "me/deepseek-ocr-tuned"}) == "DeepSeek-VL2"


@pytest.mark.parametrize("name", OCR_PRESETS)
def test_a_configuration_is_written_as_it_was_read(name: str) -> None:
    config = preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.to_dict() == dict(config.source)


def test_deepseek_ocr_2_is_read_where_the_file_says_little_or_what_its_code_ignores() -> None:
    """The released code fixes all sizes but `dim`, and the last convolution's width whatever the file says."""
    stale = {**OCR_2, "vision_config": {**OCR_2["vision_config"], "width": {
        "qwen2-0-5b": {"dim": 896}, "sam_vit_b": {"downsample_channels": [512, 1024]},
    }}}  # fmt: skip
    encoders = [ModelConfig.from_dict(config).vision_config for config in (OCR_2, stale)]
    assert encoders == [preset("deepseek-ocr-2").vision_config] * 2
    written = ModelConfig.from_dict(OCR_2).to_dict()
    assert written["vision_config"] == OCR_2["vision_config"]


def test_the_decoder_of_deepseek_ocr_2_has_the_size_of_qwen2_0_5b() -> None:
    """Qwen2-0.5B has 0.49 B parameters, 0.36 B without the token table (its model card), and so has the decoder."""
    state = build_empty(preset("deepseek-ocr-2")).state_dict()
    count = sum(t.numel() for name, t in state.items() if name.startswith("vision.query_encoder.layers."))
    assert count == pytest.approx(0.36e9, rel=0.01)
    assert "image_newline" not in state


def test_the_encoder_and_the_whole_have_the_published_sizes() -> None:
    """CLIP-L has 300 M by the paper (section 3.2), and the language model is DeepSeek-VL2-Tiny's.

    SAM by arithmetic: 12 blocks of 7.1 M, positions 3.1 M, patches 0.6 M, neck and convolutions 6.7 M.
    """
    config, tiny = preset("deepseek-ocr"), preset("tiny")
    size, state = ModelSize.of(config), build_empty(config).state_dict()
    counts = {
        part: sum(t.numel() for name, t in state.items() if name.startswith(part))
        for part in ("vision.sam.blocks.", "vision.sam.", "vision.clip.")
    }
    assert counts["vision.sam.blocks."] == pytest.approx(12 * 7.1e6, rel=0.01)
    assert counts["vision.sam."] == pytest.approx(12 * 7.1e6 + 3.1e6 + 0.6e6 + 6.7e6, rel=0.01)
    assert counts["vision.clip."] == pytest.approx(303e6, rel=0.02)
    language = {part: n for part, n in parameters(tiny).items() if part not in ("vision encoder", "projector")}
    assert size.language == sum(n for part, n in language.items() if not part.startswith("attention pool"))


def test_names_in_the_files_are_those_of_the_released_loader() -> None:
    names = {place.name for place in places(build_empty(preset("deepseek-ocr")))}
    expected = {
        "model.sam_model.blocks.11.attn.rel_pos_h": True,
        "model.sam_model.neck.3.weight": True,
        "model.sam_model.net_3.weight": True,
        "model.vision_model.transformer.layers.23.self_attn.qkv_proj.weight": True,
        "model.vision_model.pre_layrnorm.weight": True,
        "model.vision_model.embeddings.patch_embedding.weight": True,
        "model.projector.layers.weight": True,
        "model.image_newline": True,
        "model.view_seperator": True,
        "model.embed_tokens.weight": True,
        "model.layers.1.mlp.experts.63.gate_proj.weight": True,
        "model.norm.weight": True,
        "lm_head.weight": True,
        "model.vision_model.embeddings.position_ids": False,
    }
    assert {name: name in names for name in expected} == expected


def test_names_in_the_files_of_deepseek_ocr_2_are_those_of_the_released_loader() -> None:
    names = {place.name for place in places(build_empty(preset("deepseek-ocr-2")))}
    expected = {
        "model.sam_model.net_3.weight": True,
        "model.qwen2_model.model.model.layers.23.self_attn.q_proj.bias": True,
        "model.qwen2_model.model.model.layers.23.self_attn.o_proj.bias": False,
        "model.qwen2_model.model.model.layers.0.mlp.gate_proj.weight": True,
        "model.qwen2_model.model.model.layers.0.post_attention_layernorm.weight": True,
        "model.qwen2_model.model.model.norm.weight": True,
        "model.qwen2_model.query_768.weight": True,
        "model.qwen2_model.query_1024.weight": True,
        "model.projector.layers.bias": True,
        "model.view_seperator": True,
        "model.image_newline": False,
        "model.layers.11.mlp.experts.63.down_proj.weight": True,
        "lm_head.weight": True,
    }
    assert {name: name in names for name in expected} == expected


def test_configurations_that_do_not_fit_are_refused() -> None:
    def changed(**changes: object) -> dict:
        return {**OCR, "vision_config": {**OCR["vision_config"], **changes}}

    sam, clip = ({"width": 768, "layers": 12, "heads": 12}, {"width": 512, "layers": 24, "heads": 16})
    with pytest.raises(UserError, match=r"the last of downsample_channels must be the clip width \(512\), got 1024"):
        ModelConfig.from_dict(changed(width={"sam_vit_b": sam, "clip-l-14-224": clip}))
    with pytest.raises(UserError, match="global_attn_indexes must be below 12"):
        ModelConfig.from_dict(changed(width={"sam_vit_b": {**sam, "global_attn_indexes": [12]}, "clip-l": {}}))
    with pytest.raises(UserError, match="image encoders that are not known here"):
        ModelConfig.from_dict(changed(width={"siglip2": {}, "sam_vit_b": sam}))
    with pytest.raises(UserError, match=r"projector_config\.projector_type must be 'linear'"):
        ModelConfig.from_dict({**OCR, "projector_config": {**OCR["projector_config"], "projector_type": "mlp_gelu"}})
    with pytest.raises(UserError, match="sliding_window must be a whole number"):
        ModelConfig.from_dict({**UNLIMITED, "sliding_window": 0})
    vision_2 = {**OCR_2["vision_config"], "width": {"qwen2-0-5b": {"dim": 896, "heads": 13}, "sam_vit_b": {}}}
    with pytest.raises(UserError, match=r"dim must be a multiple of twice the heads \(26\), got 896"):
        ModelConfig.from_dict({**OCR_2, "vision_config": vision_2})
    with pytest.raises(UserError, match=r"projector_config\.input_dim must be the vision width \(896\), got 2048"):
        ModelConfig.from_dict({**OCR_2, "projector_config": OCR["projector_config"]})
