"""The same model out of the transformers library's layers, for a comparison: SigLIP, our adaptor, DeepSeek-V3.

The weights are copied from ours, so both compute the same function. The adaptor and the layout of an image have no
counterpart in the library; they are ours on both sides.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from vl2.config import LanguageConfig, VisionConfig
from vl2.data.pack import Packed
from vl2.model import VL2
from vl2.model.layout import arrange_tiles
from vl2.process.sample import IGNORE_ID


def language_config(config: LanguageConfig) -> DeepseekV3Config:
    """Return the library's configuration of a model with latent attention, sigmoid routing and an expert bias."""
    assert config.use_mla, "DeepSeek-V3 has latent attention"
    assert config.has_expert_bias, "DeepSeek-V3 has an expert bias"
    names = (
        "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads "
        "n_shared_experts n_routed_experts num_experts_per_tok routed_scaling_factor kv_lora_rank q_lora_rank "
        "qk_rope_head_dim qk_nope_head_dim v_head_dim n_group topk_group first_k_dense_replace norm_topk_prob "
        "max_position_embeddings rms_norm_eps attention_bias bos_token_id eos_token_id"
    )
    return DeepseekV3Config(
        **{name: getattr(config, name) for name in names.split()},
        num_key_value_heads=config.num_attention_heads,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        num_mtp_layers=0,
        use_cache=False,
    )


def vision_config(config: VisionConfig) -> SiglipVisionConfig:
    return SiglipVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
        vision_use_head=False,
    )


class TransformersModel(nn.Module):
    """A packed sequence in, the mean next-token loss out, as a plain training script writes it."""

    def __init__(self, model: VL2) -> None:
        super().__init__()
        config = model.config
        self.vision = SiglipVisionModel(vision_config(config.vision_config))
        self.language = DeepseekV3ForCausalLM(language_config(config.language_config))
        self.language.set_experts_implementation("grouped_mm")  # the fastest it has
        self.projector = type(model.projector)(config.projector_config)
        self.image_newline = nn.Parameter(torch.zeros_like(model.image_newline))
        self.view_separator = nn.Parameter(torch.zeros_like(model.view_separator))
        self.load_state_dict(_their_names(model.state_dict()))

    def forward(self, packed: Packed) -> Tensor:
        """Return the sum of the losses of the trained positions."""
        embeds = self.language.get_input_embeddings()(packed.input_ids.unsqueeze(0))
        if len(packed.grids):
            tokens = self.projector(self.vision(packed.tiles).last_hidden_state)
            grids = [(columns, rows) for columns, rows in packed.grids.tolist()]
            visual = arrange_tiles(tokens, grids, self.image_newline, self.view_separator)
            mask = packed.image_mask.unsqueeze(-1).expand_as(embeds[0]).unsqueeze(0)
            embeds = embeds.masked_scatter(mask, visual.to(embeds.dtype))
        # Positions that begin anew tell the library where a document begins.
        logits = self.language(inputs_embeds=embeds, position_ids=packed.position_ids.unsqueeze(0)).logits[0]
        return F.cross_entropy(logits[:-1].float(), packed.labels[1:], ignore_index=IGNORE_ID, reduction="sum")


def _their_names(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights under the names of the library's modules."""
    theirs: dict[str, Tensor] = {}
    moved = {
        "vision.patch_embed.proj.": "vision.embeddings.patch_embedding.",
        "vision.blocks.": "vision.encoder.layers.",
        "vision.norm.": "vision.post_layernorm.",
        ".norm1.": ".layer_norm1.",
        ".norm2.": ".layer_norm2.",
        ".attn.proj.": ".self_attn.out_proj.",
    }
    for name, tensor in ours.items():
        if name.startswith("vision.attn_pool"):
            continue
        if name == "vision.pos_embed":
            theirs["vision.embeddings.position_embedding.weight"] = tensor[0]
            continue
        if name.startswith("vision."):
            for mine, yours in moved.items():
                name = name.replace(mine, yours)
        if ".attn.qkv." in name:
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                theirs[name.replace(".attn.qkv.", f".self_attn.{part}_proj.")] = rows
            continue
        theirs[name] = tensor
    return theirs
