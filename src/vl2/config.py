"""The model's configuration: frozen dataclasses with the keys of the released config.json, and the presets.

No field has a default. Keys that a file leaves out are filled from `RELEASED_DEFAULTS`, the one table
of the released configuration classes' defaults. A value that this package does not implement is an
error (`SUPPORTED_VALUES`), never ignored. Keys that change no arithmetic (`architectures`, `auto_map`,
`transformers_version`, ...) are kept and written back unchanged.

Source: config.json of the three released checkpoints and the defaults of the released
configuration classes. Golden: tests/golden/reference/checkpoints, tests/golden/configs.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from vl2.deep_encoder_config import DeepEncoderConfig
from vl2.errors import UserError
from vl2.grid import LAYOUTS, ImageLayout
from vl2.model_kind import ModelKind, answer_window, model_kind
from vl2.rope_scaling import RopeScaling

Json = dict[str, Any]

ScoringFunc = Literal["softmax", "sigmoid"]
TopkMethod = Literal["greedy", "group_limited_greedy", "noaux_tc"]

PRESETS = ("nano", "tiny", "small", "base")
OCR_PRESETS = ("deepseek-ocr", "unlimited-ocr", "deepseek-ocr-2")  # reconstructed: the released files could not be read

# Defaults of the released configuration classes, for keys that are not in config.json.
RELEASED_DEFAULTS: dict[str, Json] = {
    "language_config": {
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "moe_intermediate_size": 1407,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": None,  # the number of attention heads
        "n_shared_experts": None,
        "n_routed_experts": None,
        "num_experts_per_tok": None,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 512,
        "q_lora_rank": 1536,
        "qk_rope_head_dim": 64,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "topk_method": "greedy",
        "n_group": None,
        "topk_group": None,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "aux_loss_alpha": 0.001,
        "seq_aux": True,
        "max_position_embeddings": 2048,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "bos_token_id": 100000,
        "eos_token_id": 100001,
        "use_mla": True,
    },
    "vision_config": {
        "image_size": 384,
        "patch_size": 16,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_ratio": 4.0,
        "global_pool": "map",
    },
    "projector_config": {"input_dim": 1152, "n_embed": 2048, "downsample_ratio": 2},
}
# The linear layer of the DeepSeek-OCR family joins no tokens.
_LINEAR_PROJECTOR = {"n_embed": 1280, "downsample_ratio": 1}
_ENCODER_WIDTHS: dict[ModelKind, int] = {"DeepSeek-OCR": 2048, "Unlimited-OCR": 2048, "DeepSeek-OCR-2": 896}

# Keys where another value would change the arithmetic in a way that no released size needs, so it is refused.
SUPPORTED_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    "": {"tile_tag": ("2D",), "global_view_pos": ("head",)},
    "language_config": {
        "hidden_act": ("silu",),
        "tie_word_embeddings": (False,),
        "attention_dropout": (0, 0.0),
        "ep_size": (1,),
    },
    "vision_config": {"class_token": (False,), "num_classes": (0,), "ignore_head": (True,)},
    "projector_config": {
        "projector_type": ("downsample_mlp_gelu",),
        "depth": (2,),
        "mlp_ratio": (1,),
        "token_pooling": (False,),
    },
}
_SUPPORTED_BY_OCR = {
    **{part: SUPPORTED_VALUES[part] for part in ("", "language_config")},
    "projector_config": {"projector_type": ("linear",), "token_pooling": (False,)},
}


def _require_positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{name} must be a positive number, got {value!r}")


def _require_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Configuration of the DeepSeekMoE language model. Field names are the keys of config.json."""

    vocab_size: int  # V
    hidden_size: int  # D, channels per token
    intermediate_size: int  # F of the dense layers
    moe_intermediate_size: int  # F of one expert
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int | None  # key and value heads of plain attention (not MLA); None: H
    n_shared_experts: int | None
    n_routed_experts: int | None  # E; None: every layer is dense
    num_experts_per_tok: int | None  # K
    routed_scaling_factor: float
    kv_lora_rank: int | None  # R, latent rank of keys and values
    q_lora_rank: int | None  # rank of the queries; None: not compressed
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    topk_method: TopkMethod
    n_group: int | None
    topk_group: int | None
    moe_layer_freq: int
    first_k_dense_replace: int
    norm_topk_prob: bool
    scoring_func: ScoringFunc
    aux_loss_alpha: float  # weight of the balance loss, read by the trainer only
    seq_aux: bool  # balance loss per sequence, else over the batch
    max_position_embeddings: int
    initializer_range: float
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    attention_bias: bool
    bos_token_id: int
    eos_token_id: int
    use_mla: bool

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "moe_layer_freq", "max_position_embeddings", "rms_norm_eps", "rope_theta",
        )  # fmt: skip
        _require_one_of("topk_method", self.topk_method, get_args(TopkMethod))
        _require_one_of("scoring_func", self.scoring_func, get_args(ScoringFunc))
        if self.use_mla:
            _require_positive(self, "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
            if self.q_lora_rank is not None:
                _require_positive(self, "q_lora_rank")
            rotary_dim, whose = self.qk_rope_head_dim, "qk_rope_head_dim"
        else:
            if self.hidden_size % self.num_attention_heads:
                raise UserError(
                    f"hidden_size must be a multiple of num_attention_heads ({self.num_attention_heads}), "
                    f"got {self.hidden_size}"
                )
            if self.num_attention_heads % self.num_kv_heads:
                raise UserError(
                    f"num_attention_heads must be a multiple of num_key_value_heads ({self.num_kv_heads}), "
                    f"got {self.num_attention_heads}"
                )
            rotary_dim, whose = self.hidden_size // self.num_attention_heads, "hidden_size / num_attention_heads"
        if rotary_dim % 2:
            raise UserError(f"{whose} must be even (rotary pairs), got {rotary_dim}")
        if self.rope_scaling is not None and not self.use_mla:
            raise UserError("language_config.rope_scaling must be null without latent attention (use_mla)")
        if self.n_routed_experts is not None:
            self._check_experts(self.n_routed_experts)

    def _check_experts(self, num_experts: int) -> None:
        _require_positive(self, "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok")
        experts_per_token = self.num_experts_per_tok or 0
        if experts_per_token > num_experts:
            raise UserError(
                f"num_experts_per_tok must be in 1..{num_experts} (n_routed_experts), got {experts_per_token}"
            )
        if self.topk_method != "greedy":
            groups, kept = self.n_group or 1, self.topk_group or 1
            if num_experts % groups:
                raise UserError(f"n_routed_experts must be a multiple of n_group ({groups}), got {num_experts}")
            if not 1 <= kept <= groups:
                raise UserError(f"topk_group must be in 1..{groups} (n_group), got {kept}")
            if self.topk_method == "noaux_tc" and num_experts // groups < 2:
                raise UserError(
                    f"noaux_tc scores a group by its two best experts: n_group must be at most {num_experts // 2}, "
                    f"got {groups}"
                )
            if experts_per_token > kept * (num_experts // groups):
                raise UserError(
                    f"num_experts_per_tok must be at most {kept * (num_experts // groups)} "
                    f"(experts in the {kept} groups kept), got {experts_per_token}"
                )

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are rotated."""
        return self.qk_rope_head_dim if self.use_mla else self.hidden_size // self.num_attention_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def has_expert_bias(self) -> bool:
        return self.topk_method == "noaux_tc"

    def is_moe_layer(self, index: int) -> bool:
        return (
            self.n_routed_experts is not None
            and index >= self.first_k_dense_replace
            and index % self.moe_layer_freq == 0
        )


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """Configuration of the SigLIP vision transformer. Field names are the keys of config.json."""

    image_size: int  # P, side of a tile in pixels
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    global_pool: str  # "map": the checkpoint also holds an attention pool, which the model does not use; "": none

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "patch_size", "width", "layers", "heads", "mlp_ratio")
        _require_one_of("global_pool", self.global_pool, ("map", ""))
        if self.width % self.heads:
            raise UserError(f"vision width must be a multiple of heads ({self.heads}), got {self.width}")
        if self.image_size < self.patch_size:
            raise UserError(f"image_size must be at least patch_size ({self.patch_size}), got {self.image_size}")

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    def num_patches(self, tile_px: int) -> int:
        """Count the patches of a tile."""
        return (tile_px // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """Configuration of the projector between encoder and language model. Field names are the keys of config.json."""

    input_dim: int
    n_embed: int
    downsample_ratio: int

    def __post_init__(self) -> None:
        _require_positive(self, "input_dim", "n_embed", "downsample_ratio")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Configuration of a whole model. `source` holds all keys of the file, so that saving writes them back."""

    language_config: LanguageConfig
    vision_config: VisionConfig | DeepEncoderConfig
    projector_config: ProjectorConfig
    kind: ModelKind = "DeepSeek-VL2"
    answer_window: int | None = None  # tokens of an answer that are seen beside the prompt; None: all
    source: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.projector_config.input_dim != self.vision_config.width:
            raise UserError(
                f"projector_config.input_dim must be the vision width ({self.vision_config.width}), "
                f"got {self.projector_config.input_dim}"
            )
        if self.projector_config.n_embed != self.language_config.hidden_size:
            raise UserError(
                f"projector_config.n_embed must be the hidden size ({self.language_config.hidden_size}), "
                f"got {self.projector_config.n_embed}"
            )

    @property
    def tokens_per_side(self) -> int:
        """Visual tokens along one side of a tile of the encoder's own size (14 for DeepSeek-VL2's 384 px)."""
        vision = self.vision_config
        if isinstance(vision, DeepEncoderConfig):
            return vision.tokens_per_side(vision.image_size)
        return -(-vision.patches_per_side // self.projector_config.downsample_ratio)

    @property
    def siglip(self) -> VisionConfig:
        """The encoder of DeepSeek-VL2. UserError for another model's, where nothing else is implemented."""
        self.require_deepseek_vl2("this")
        assert isinstance(self.vision_config, VisionConfig), self.kind
        return self.vision_config

    def require_deepseek_vl2(self, what: str) -> None:
        """Raise UserError for another model, naming what is not done for it."""
        if self.kind != "DeepSeek-VL2":
            raise UserError(
                f"this checkpoint is {self.kind}: it can answer, and {what} is for DeepSeek-VL2 only so far"
            )

    def layout(self, overview_side: int, tile_side: int) -> ImageLayout:
        """Return what an image becomes, given the tokens along one side of its views."""
        return LAYOUTS[self.kind](overview_side=overview_side, tile_side=tile_side)

    @property
    def torch_dtype(self) -> str:
        return str(self.source.get("torch_dtype") or self.source.get("dtype") or "bfloat16")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Read the keys of a released config.json. Raise UserError if a key is missing or unsupported."""
        kind = model_kind(values)
        for part in ("language_config", "vision_config", "projector_config"):
            if not isinstance(values.get(part), Mapping):
                raise UserError(f"config.json has no {part}: is this a DeepSeek-VL2 checkpoint?")
        is_vl2 = kind == "DeepSeek-VL2"
        _refuse_unsupported(values, SUPPORTED_VALUES if is_vl2 else _SUPPORTED_BY_OCR)
        vision, projector = values["vision_config"], values["projector_config"]
        return cls(
            language_config=_fill(LanguageConfig, values["language_config"], RELEASED_DEFAULTS["language_config"]),
            vision_config=_fill(VisionConfig, vision, RELEASED_DEFAULTS["vision_config"])
            if is_vl2
            else DeepEncoderConfig.from_section(vision, has_queries=kind == "DeepSeek-OCR-2"),
            projector_config=_fill(ProjectorConfig, projector, _projector_defaults(kind)),
            kind=kind,
            answer_window=None if is_vl2 else answer_window(values),
            source=values,
        )

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a config.json file. Raise UserError if it is missing, not valid or not supported."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no config.json in {path.parent}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is not valid JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"{path} must hold a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> Json:
        """Return the keys for config.json: all keys of `source`, and every value that differs from its default."""
        out: Json = json.loads(json.dumps(dict(self.source)))
        if isinstance(self.vision_config, DeepEncoderConfig):
            out["vision_config"] = self.vision_config.to_section(out.get("vision_config", {}))
        for part, defaults in {**RELEASED_DEFAULTS, "projector_config": _projector_defaults(self.kind)}.items():
            if isinstance(getattr(self, part), DeepEncoderConfig):
                continue
            section = out.setdefault(part, {})
            for key, value in dataclasses.asdict(getattr(self, part)).items():
                if key in section or value != defaults[key]:
                    section[key] = value
        return out


C = TypeVar("C", LanguageConfig, VisionConfig, ProjectorConfig)


def _fill(kind: type[C], given: Mapping[str, Any], defaults: Mapping[str, Any]) -> C:
    names = [f.name for f in dataclasses.fields(kind)]
    found = {name: given.get(name, defaults[name]) for name in names}
    if found.get("rope_scaling") is not None:
        found["rope_scaling"] = RopeScaling.from_dict(found["rope_scaling"])
    return kind(**found)


def _projector_defaults(kind: ModelKind) -> Mapping[str, Any]:
    if kind == "DeepSeek-VL2":
        return RELEASED_DEFAULTS["projector_config"]
    return {"input_dim": _ENCODER_WIDTHS[kind], **_LINEAR_PROJECTOR}


def _refuse_unsupported(values: Mapping[str, Any], supported: Mapping[str, Mapping[str, tuple[Any, ...]]]) -> None:
    for part, table in supported.items():
        given = values.get(part, {}) if part else values
        for key, allowed in table.items():
            if key in given and given[key] not in allowed:
                name = f"{part}.{key}" if part else key
                raise UserError(f"{name} must be {allowed[0]!r}, the only value supported, got {given[key]!r}")


def preset(name: str) -> ModelConfig:
    """Return the configuration of a released size, of the built-in "nano", or of one of the DeepSeek-OCR family."""
    _require_one_of("preset", name, (*PRESETS, *OCR_PRESETS))
    folder = resources.files("vl2") / ("nano" if name == "nano" else "presets")
    file = "config.json" if name == "nano" else f"{name}.config.json"
    return ModelConfig.from_dict(json.loads((folder / file).read_text(encoding="utf-8")))
