"""Small language models and SigLIPs with random weights, made and saved by transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vl2.process.tokenizer import BOS, EOS

NUM_BYTES = 256
BOS_ID, EOS_ID, NUM_TOKENS = 256, 257, 258

VISION: dict[str, Any] = {
    "hidden_size": 36, "intermediate_size": 100, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14,
    "image_size": 76,  # as 384, more than a whole number of patches: 5 x 14 = 70
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "beta_fast": 4, "beta_slow": 0.1, "mscale": 1.0, "mscale_all_dim": 0.707,
}  # fmt: skip


def make_every_weight_matter(model: nn.Module) -> None:
    """Draw all weights anew, norms and biases too. In place."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.empty(parameter.shape).normal_(generator=generator)
            parameter.copy_(1 + 0.2 * values if parameter.dim() == 1 else 0.2 * values)


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer that has a begin and an end, and none of DeepSeek-VL2's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(alphabet) == NUM_BYTES
    tokenizer = Tokenizer(models.BPE(vocab={character: id for id, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS)])
    assert [tokenizer.token_to_id(token) for token in (BOS, EOS)] == [BOS_ID, EOS_ID]
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}", "pad_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_deepseek_v2(folder: Path, **changes: Any) -> DeepseekV2ForCausalLM:
    """Save a language model in DeepSeek-V2-Lite's layout, by transformers."""
    settings: dict[str, Any] = {
        "vocab_size": NUM_TOKENS, "hidden_size": 32, "intermediate_size": 72, "moe_intermediate_size": 24,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "kv_lora_rank": 16,
        "q_lora_rank": None, "qk_nope_head_dim": 8, "qk_rope_head_dim": 16, "v_head_dim": 12, "n_routed_experts": 6,
        "n_shared_experts": 2, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "max_position_embeddings": 256,
        "bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "tie_word_embeddings": False, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    model = DeepseekV2ForCausalLM(DeepseekV2Config(**settings)).eval()
    make_every_weight_matter(model)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def save_deepseek_moe(folder: Path) -> Qwen2MoeForCausalLM:
    """Save a language model in DeepSeek-MoE-16B's layout, and return one of transformers' that computes the same.

    transformers has no class for it. Qwen2-MoE has the same attention, routing and experts, and multiplies the shared
    experts by a gate; with no weights the gate is 1/2, which is put into the shared experts here.
    """
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=NUM_TOKENS, hidden_size=32, intermediate_size=72, moe_intermediate_size=24,
            shared_expert_intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
            num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, mlp_only_layers=[0], qkv_bias=False,
            max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=BOS_ID, eos_token_id=EOS_ID,
        )
    ).eval()  # fmt: skip
    make_every_weight_matter(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("shared_expert_gate.weight"):
                parameter.zero_()
    model.save_pretrained(folder)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "shared_expert_gate" not in name:
            halved = tensor / 2 if name.endswith("shared_expert.down_proj.weight") else tensor
            tensors[name.replace(".shared_expert.", ".shared_experts.")] = halved
    save_file(tensors, folder / "model.safetensors")
    # The keys of the released config.json that say what is computed.
    settings = {
        "architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "attention_bias": False,
        "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
        "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 32, "initializer_range": 0.02,
        "intermediate_size": 72, "max_position_embeddings": 256, "moe_intermediate_size": 24, "moe_layer_freq": 1,
        "n_routed_experts": 6, "n_shared_experts": 2, "norm_topk_prob": False, "num_attention_heads": 4,
        "num_experts_per_tok": 2, "num_hidden_layers": 3, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 10000, "scoring_func": "softmax", "seq_aux": True,
        "tie_word_embeddings": False, "torch_dtype": "float32", "vocab_size": NUM_TOKENS,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_tokenizer(folder)
    return model


def save_siglip(folder: Path) -> SiglipVisionModel:
    """Save a SigLIP with its text tower, as the hub has it, and return its vision model."""
    text = {
        "vocab_size": 50, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=VISION, text_config=text)).eval()
    make_every_weight_matter(model)
    model.save_pretrained(folder)
    return model.vision_model


def save_siglip_vision_model(folder: Path, **changes: Any) -> SiglipVisionModel:
    """Save a SigLIP's vision model alone."""
    torch.manual_seed(0)
    model = SiglipVisionModel(SiglipVisionConfig(**{**VISION, **changes})).eval()
    make_every_weight_matter(model)
    model.save_pretrained(folder)
    return model
