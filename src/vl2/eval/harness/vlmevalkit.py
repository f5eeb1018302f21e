"""The model plug-in for VLMEvalKit, with the prompts of that harness's adapter for DeepSeek-VL2.

    from vlmeval.config import supported_VLM
    from vl2.eval.harness.vlmevalkit import VL2ForVLMEvalKit
    supported_VLM["vl2-tiny"] = partial(VL2ForVLMEvalKit, model_path="deepseek-ai/deepseek-vl2-tiny")

Decoding is greedy, with at most 512 tokens unless `max_new_tokens` is given, and final periods are dropped. On MMMU the
sides of the first image are doubled and the prompt is rewritten, as for the published figure.
"""

from __future__ import annotations

from typing import Any

from vlmeval.vlm.base import BaseModel

from vl2.eval.harness.shared_model import answer, load_model, options_of
from vl2.eval.tasks.mmmu import rewrite_for_adapter
from vl2.process.conversation import Role, Turn
from vl2.process.image import open_image
from vl2.process.messages import released_prompt

DEFAULT_TOKENS = 512
MMMU = "MMMU_DEV_VAL"
ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}


class VL2ForVLMEvalKit(BaseModel):
    """A VLMEvalKit model that answers lists of texts and images."""

    INSTALL_REQ = False
    INTERLEAVE = True

    def __init__(
        self,
        model_path: str = "nano",
        *,
        device: str = "auto",
        dtype: str = "auto",
        max_tiles: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        self.vlm = load_model(model_path, device=device, dtype=dtype, batch_size=1, max_tiles=max_tiles)
        self.options = options_of(settings, DEFAULT_TOKENS)

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        return self._answer([{"role": "user", "content": message}], dataset)

    def chat_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        return self._answer(message, dataset)

    def _answer(self, turns: list[dict[str, Any]], dataset: str | None) -> str:
        conversation = [released_turn(turn, dataset) for turn in turns]
        conversation.append(Turn(role="assistant", pieces=(), is_released=True))
        return answer(self.vlm, [conversation], [self.options])[0].rstrip(".")


def released_turn(turn: dict[str, Any], dataset: str | None) -> Turn:
    """Return a turn in the released prompt format, worded as the adapter does."""
    pictures = [part["value"] for part in turn["content"] if part["type"] == "image"]
    if dataset == MMMU:
        marks = (f"<image {number}>" for number in range(1, len(pictures) + 1))
        text = "".join(next(marks) if part["type"] == "image" else part["value"] for part in turn["content"])
        content, images = rewrite_for_adapter(text, [open_image(picture) for picture in pictures])
    else:
        parts = ("<image>\n" if part["type"] == "image" else part["value"] for part in turn["content"])
        content, images = "".join(parts), pictures
    return Turn(role=ROLES[turn["role"]], pieces=released_prompt(content, images), is_released=True)
