"""The folder itself: the released settings for the released shapes, the vocabulary, and what is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

import vl2
from tests.assemble.hub_models import NUM_BYTES, NUM_TOKENS, save_deepseek_v2, save_siglip, write_tokenizer
from vl2.assemble import assemble_checkpoint
from vl2.assemble.language_model import language_config
from vl2.assemble.settings import model_config, processor_config
from vl2.assemble.siglip import Siglip
from vl2.assemble.sources import Language, Vision
from vl2.assemble.vocabulary import Vocabulary
from vl2.checkpoint.load import load_model
from vl2.config import preset
from vl2.process.processor import Processor
from vl2.process.tokenizer import ASSISTANT, GROUNDING, IMAGE, PAD, USER

# The new tokens in the order of their ids, which the released tokenizers have too (100002 to 100010 in small).
ADDED = [PAD, IMAGE, *GROUNDING, USER, ASSISTANT]

# config.json of google/siglip-so400m-patch14-384: what its classes assume is left out.
SO400M = {
    "model_type": "siglip",
    "text_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27},
    "vision_config": {
        "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304, "model_type": "siglip_vision_model",
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14,
    },
}  # fmt: skip
# config.json of DeepSeek-V2-Lite.
V2_LITE = {
    "model_type": "deepseek_v2", "attention_bias": False, "attention_dropout": 0.0, "aux_loss_alpha": 0.001,
    "bos_token_id": 256, "eos_token_id": 257, "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": False, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "q_lora_rank": None, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
    "seq_aux": True, "tie_word_embeddings": False, "topk_group": 1, "topk_method": "greedy", "torch_dtype": "bfloat16",
    "v_head_dim": 128, "vocab_size": 102400,
    "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn",
    },
}  # fmt: skip


def test_the_published_parts_have_the_shape_of_the_released_small(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    language = Language(
        folder=tmp_path,
        config=language_config(tmp_path, {**V2_LITE, "rope_scaling": None}),
        tokenizer_file=file,
        vocabulary=Vocabulary.of(file, 102400),
    )
    siglip = Siglip.of(tmp_path, SO400M)
    config = model_config(language, Vision(siglip=siglip, config=siglip.vision_config), "bfloat16")
    small = preset("small")
    assert config.vision_config == small.vision_config
    assert config.projector_config == small.projector_config
    ours, released = ({**vars(c.language_config), "bos_token_id": 0, "eos_token_id": 1} for c in (config, small))
    assert {key for key in released if ours[key] != released[key]} <= {"n_group", "topk_group"}  # of one group, or None
    assert config.source["candidate_resolutions"] == small.source["candidate_resolutions"]
    assert config.source["vision_config"]["model_name"] == small.source["vision_config"]["model_name"]
    presets = Path(vl2.__file__).parent / "presets"
    assert processor_config(config) == json.loads((presets / "processor_config.json").read_text(encoding="utf-8"))
    stretched = language_config(tmp_path, V2_LITE)
    assert stretched["rope_scaling"] == V2_LITE["rope_scaling"]
    assert stretched["max_position_embeddings"] == 4096


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "vision"
    save_siglip(folder)
    return folder


@pytest.mark.parametrize(("stored_rows", "rows"), [(NUM_TOKENS, 384), (NUM_TOKENS + 5, 384), (320, 320)])
@torch.no_grad()
def test_new_tokens_begin_with_the_mean_of_the_seen_rows(
    stored_rows: int, rows: int, siglip: Path, tmp_path: Path
) -> None:
    theirs = save_deepseek_v2(tmp_path / "language", vocab_size=stored_rows)
    made = assemble_checkpoint(str(tmp_path / "language"), str(siglip), tmp_path / "out", dtype="float32")
    assert made.vocabulary.added == {token: NUM_TOKENS + i for i, token in enumerate(ADDED)}
    assert made.config.language_config.vocab_size == made.vocabulary.rows == rows
    model = load_model(tmp_path / "out")
    new = [*range(NUM_TOKENS, NUM_TOKENS + len(ADDED)), *range(stored_rows, rows)]
    for ours, stored in (
        (model.language.model.embed_tokens.weight, theirs.model.embed_tokens.weight),
        (model.language.lm_head.weight, theirs.lm_head.weight),
    ):
        mean = stored[:NUM_TOKENS].double().mean(dim=0).float()
        torch.testing.assert_close(ours[new], mean.expand(len(new), -1), rtol=1e-6, atol=1e-7)
        kept = [id for id in range(stored_rows) if id not in new]
        assert torch.equal(ours[kept], stored[kept])
    # What the mean is for: a new token is never likelier than the average of the trained ones.
    states = torch.randn(50, 32, generator=torch.Generator().manual_seed(0)) * 3
    probabilities = model.language.logits(states).softmax(dim=-1)
    assert (probabilities[:, new].amax(dim=1) <= probabilities[:, :NUM_TOKENS].mean(dim=1) * (1 + 1e-4)).all()


def test_the_folder_has_the_tokens_for_our_processor_and_for_transformers(siglip: Path, tmp_path: Path) -> None:
    save_deepseek_v2(tmp_path / "language")
    made = assemble_checkpoint(str(tmp_path / "language"), str(siglip), tmp_path / "out")
    processor = Processor.from_folder(tmp_path / "out")
    assert processor.tokenizer.special_ids == made.vocabulary.tokenizer.special_ids
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = f"{USER}: x{IMAGE}\n\n{ASSISTANT}: é"
    assert theirs(text, add_special_tokens=False)["input_ids"] == processor.tokenizer.encode(text, "all")
    assert (theirs.pad_token, theirs.chat_template) == (PAD, None)
    assert processor.tokenizer.num_ids == NUM_BYTES + 2 + len(ADDED)


def test_what_is_drawn_depends_on_the_seed_alone(siglip: Path, tmp_path: Path) -> None:
    save_deepseek_v2(tmp_path / "language")
    parts = {"a": (str(tmp_path / "language"), 0), "b": (str(tmp_path / "language"), 1), "c": ("random:nano", 0)}
    models = {}
    for name, (language, seed) in parts.items():
        assemble_checkpoint(language, str(siglip), tmp_path / name, dtype="float32", seed=seed)
        models[name] = load_model(tmp_path / name)
    first = {name: model.projector.layers[0].weight for name, model in models.items()}
    assert not torch.equal(first["a"], first["b"])
    fan_in = first["c"].shape[1]
    for weight in first.values():
        assert weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.05)
    assert models["a"].projector.layers[0].bias.eq(0).all()
    assert models["c"].image_newline.std().item() == pytest.approx(256**-0.5, rel=0.2)
    norms = [p for name, p in models["c"].named_parameters() if "layernorm" in name]
    assert all(norm.eq(1).all() for norm in norms)
    again = assemble_checkpoint("random:nano", "random:nano", tmp_path / "d", dtype="float32", seed=0)
    assert torch.equal(models["c"].language.lm_head.weight, load_model(again.folder).language.lm_head.weight)
