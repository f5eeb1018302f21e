"""The model plug-in for lmms-eval 0.7: `--model vl2 --model_args pretrained=NAME` (entry point `lmms_eval.models`).

`Simple` puts the images before the text; `Chat` leaves them where the task's messages have them. lmms-eval uses `Chat`
unless `--force_simple` is given. All requests of a call are answered in batches of `batch_size` rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from vl2.errors import UserError
from vl2.eval.harness.shared_model import answer, load_model, options_of
from vl2.process.conversation import ImageRef, Piece, Turn, user_turn

DEFAULT_TOKENS = 512


def manifest() -> ModelManifest:
    """Return the manifest that lmms-eval registers; the entry point refers to this function."""
    here = __name__
    return ModelManifest(
        model_id="vl2",
        simple_class_path=f"{here}.Simple",
        chat_class_path=f"{here}.Chat",
        aliases=("deepseek_vl2",),
    )


class Simple(lmms):
    """A model that answers requests of a text and images."""

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 8,
        max_tiles: int | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise UserError(
                f"unknown model argument {next(iter(unknown))}: "
                "known are pretrained, device, dtype, batch_size, max_tiles"
            )
        self.batch_size = 8 if batch_size == "auto" else int(batch_size)
        self.vlm = load_model(
            pretrained,
            device=device or "auto",
            dtype=dtype,
            batch_size=self.batch_size,
            max_tiles=None if max_tiles is None else int(max_tiles),
        )

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        arguments = [request.args for request in requests]
        options = [options_of(self._settings(args), DEFAULT_TOKENS) for args in arguments]
        return answer(self.vlm, [self._turns(args) for args in arguments], options)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise UserError("vl2 answers by generation: a task that compares likelihoods cannot be run")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise UserError("vl2 has no task of several rounds in lmms-eval yet")

    def _settings(self, args: Sequence[Any]) -> dict[str, Any]:
        settings: dict[str, Any] = args[1]
        return settings

    def _turns(self, args: Sequence[Any]) -> list[Turn]:
        text, _, to_pictures, document, task, split = args
        pictures = to_pictures(self.task_dict[task][split][document])
        return [user_turn(text, pictures or [])]


class Chat(Simple):
    """A model that answers requests of conversations."""

    is_simple = False

    def _settings(self, args: Sequence[Any]) -> dict[str, Any]:
        settings: dict[str, Any] = args[2]
        return settings

    def _turns(self, args: Sequence[Any]) -> list[Turn]:
        _, to_messages, _, document, task, split = args
        turns = to_messages(self.task_dict[task][split][document])
        return [Turn(role=turn["role"], pieces=tuple(map(_piece, turn["content"]))) for turn in turns]


def _piece(part: dict[str, Any]) -> Piece:
    if part["type"] == "text":
        return str(part["text"])
    if part["type"] == "image":
        return ImageRef(source=part["url"])
    raise UserError(f"vl2 reads text and images, and the task gives {part['type']}")
