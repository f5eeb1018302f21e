"""Find out which model a config.json describes: DeepSeek-VL2, or one of the DeepSeek-OCR family.

All of them have the same language model and, but for Unlimited-OCR, `model_type: deepseek_vl_v2`. The models of the
DeepSeek-OCR family have a SAM encoder and a projector of one linear layer. Behind SAM, DeepSeek-OCR-2 has a Qwen2
decoder and the others CLIP. The distinguishing keys come from the released code and from the classes of transformers
and vLLM, because the released files themselves were not available.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from vl2.errors import UserError

MODEL_TYPE = "deepseek_vl_v2"
UNLIMITED_TYPE = "unlimited-ocr"  # of Unlimited-OCR, as vLLM's configuration class has it

ModelKind = Literal["DeepSeek-VL2", "DeepSeek-OCR", "Unlimited-OCR", "DeepSeek-OCR-2"]

# Model types of checkpoints that were converted for transformers' own classes. Their keys and weight names differ.
_CONVERTED = {"deepseek_ocr": "DeepSeek-OCR", "deepseek_ocr2": "DeepSeek-OCR-2", "unlimited_ocr": "Unlimited-OCR"}


def model_kind(values: Mapping[str, Any]) -> ModelKind:
    """Return which model a config.json describes. Raise UserError, which names the model, if vl2 does not run it."""
    kind = str(values.get("model_type", MODEL_TYPE))
    if kind in _CONVERTED and "language_config" not in values:
        raise UserError(
            f"this checkpoint is {_CONVERTED[kind]} as transformers converts it: vl2 runs the released layout only"
        )
    if kind != MODEL_TYPE and "language_config" not in values:
        raise UserError(f"this checkpoint is of model type {kind!r}, and vl2 runs DeepSeek-VL2 ({MODEL_TYPE!r}) only")
    return _kind_by_encoder(values)


def _kind_by_encoder(values: Mapping[str, Any]) -> ModelKind:
    vision, projector = (_section(values, part) for part in ("vision_config", "projector_config"))
    width, input_dim = vision.get("width"), projector.get("input_dim")
    encoders = " ".join(map(str, width)).lower() if isinstance(width, Mapping) else ""  # names such as sam_vit_b
    classes = _plain_letters([values.get("architectures"), values.get("auto_map")])
    # A fine-tuned DeepSeek-VL2 may come from a folder with "ocr" in its name, so the name alone decides nothing.
    is_linear = projector.get("projector_type") == "linear" and input_dim not in (None, width)
    if not (encoders or is_linear or "ocr" in classes):
        return "DeepSeek-VL2"
    named = classes + _plain_letters([values.get("_name_or_path"), values.get("model_type")])
    if encoders and not ("sam" in encoders and ("clip" in encoders or "qwen2" in encoders)):
        raise UserError(
            f"this checkpoint is a model of the DeepSeek-OCR family: it has image encoders that are not known here "
            f"({encoders}), and this version of vl2 does not run it"
        )
    has_queries = "qwen2" in encoders if encoders else "deepseekocr2" in named or input_dim == 896
    if has_queries:
        return "DeepSeek-OCR-2"
    return "Unlimited-OCR" if "unlimitedocr" in named or answer_window(values) is not None else "DeepSeek-OCR"


def answer_window(values: Mapping[str, Any]) -> int | None:
    """Return how many tokens of an answer attention sees beside the prompt (`sliding_window` of Unlimited-OCR).

    Return None if the key is missing. Raise UserError unless it is a whole number of at least 1.
    """
    found = values.get("sliding_window", _section(values, "language_config").get("sliding_window"))
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UserError(f"sliding_window must be a whole number of at least 1, got {found!r}")
    return found


def _section(values: Mapping[str, Any], part: str) -> Mapping[str, Any]:
    found = values.get(part)
    return found if isinstance(found, Mapping) else {}


def _plain_letters(value: Any) -> str:
    """Return the texts in nested lists and in the values of dictionaries, reduced to lowercase letters and digits."""
    return "".join(c for text in _texts(value) for c in text.lower() if c.isalnum())


def _texts(value: Any) -> list[str]:
    """Return the texts in nested lists and the values of dictionaries."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [value] if isinstance(value, str) else []
