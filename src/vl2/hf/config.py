# mypy: allow-untyped-calls
"""The model configuration for transformers, which reads and writes the released config.json.

The three sections stay plain dicts, as in the file. Their meaning, allowed values and defaults are defined
in `vl2.config.ModelConfig` only.
Golden: tests/golden/reference/checkpoints.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import PreTrainedConfig

from vl2.config import RELEASED_DEFAULTS, ModelConfig
from vl2.errors import UserError
from vl2.model_kind import MODEL_TYPE, UNLIMITED_TYPE

# Keys that transformers passes to the constructor, but that are not in config.json.
_RUNTIME_KEYS = ("attn_implementation", "experts_implementation", "name_or_path", "num_labels", "output_attentions")
_DTYPE_KEYS = ("dtype", "torch_dtype")


def _language_value(name: str) -> Any:
    """Return a property for a key of language_config that transformers expects as an attribute of the config."""

    def read(self: VL2Config) -> Any:
        return self.language_config.get(name, RELEASED_DEFAULTS["language_config"][name])

    def write(self: VL2Config, value: Any) -> None:
        self.language_config[name] = value

    return property(read, write)


class ConfigRefused(UserError, ValueError):
    """A configuration that this package does not support.

    It is a ValueError too, because transformers catches that error where it does not need a config. So AutoTokenizer
    still loads the tokenizer of a DeepSeek-OCR checkpoint, as it does without vl2.hf.
    """


class VL2Config(PreTrainedConfig):
    """Configuration of a whole model, with the keys of config.json. Raises UserError for an unsupported value."""

    model_type = MODEL_TYPE
    has_no_defaults_at_init = True
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values", "balance_loss"]

    if TYPE_CHECKING:  # transformers makes a dataclass of this class: an annotation would become a field
        language_config: dict[str, Any]
        vision_config: dict[str, Any]
        projector_config: dict[str, Any]

    vocab_size = _language_value("vocab_size")
    hidden_size = _language_value("hidden_size")
    num_hidden_layers = _language_value("num_hidden_layers")
    num_attention_heads = _language_value("num_attention_heads")
    max_position_embeddings = _language_value("max_position_embeddings")
    initializer_range = _language_value("initializer_range")
    bos_token_id = _language_value("bos_token_id")
    eos_token_id = _language_value("eos_token_id")

    def __init__(self, **values: Any) -> None:
        values = copy.deepcopy(values)
        try:
            ModelConfig.from_dict(values)  # fail now rather than when the model is built
        except UserError as error:
            raise ConfigRefused(str(error)) from None
        super().__init__(**values)
        self.pad_token_id: int | None = None  # the file has none; the tokenizer knows it
        self.tie_word_embeddings = False
        self._released = {k: v for k, v in values.items() if k not in _RUNTIME_KEYS and not k.startswith("_")}

    def to_model_config(self) -> ModelConfig:
        """Return the configuration that the model is built from."""
        values = {
            key: self._dtype_name() if key in _DTYPE_KEYS else getattr(self, key, value)
            for key, value in self._released.items()
        }
        return ModelConfig.from_dict(copy.deepcopy(values))

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of the file with their current values."""
        return {**self.to_model_config().to_dict(), "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return all of `to_dict`, because a released config.json has all keys, not only changed ones."""
        return self.to_dict()

    def _dtype_name(self) -> str | None:
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")


class UnlimitedOCRConfig(VL2Config):
    """The same for Unlimited-OCR, which has another model type."""

    model_type = UNLIMITED_TYPE

    def __init__(self, **values: Any) -> None:  # transformers writes one of its own for a class that has none
        super().__init__(**values)
