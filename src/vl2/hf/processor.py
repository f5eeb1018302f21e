"""The processor class for transformers, a wrapper of `vl2.process.processor.Processor`.

Golden: tests/golden/reference/processor.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor
from transformers import BatchFeature

from vl2.checkpoint import locate_checkpoint
from vl2.errors import UserError
from vl2.hf.collator import model_inputs
from vl2.hf.pretrained_files import refuse_unknown
from vl2.infer.vlm import TOKENIZER_FILES
from vl2.process.image import ImageOptions
from vl2.process.messages import to_turns
from vl2.process.processor import Processor
from vl2.process.sample import Sample, collate
from vl2.process.tiling import Tiling

PROCESSOR_FILE = "processor_config.json"

Side = Literal["left", "right"]


class DeepseekVLV2Processor:
    """Convert text and images to the inputs of `generate`, and token ids to text.

    AutoProcessor looks a class up by the name in the released processor_config.json, so the class has that name.
    """

    model_input_names: ClassVar[list[str]] = [
        "input_ids",
        "attention_mask",
        "image_mask",
        "tiles",
        "overviews",
        "grids",
    ]

    def __init__(self, core: Processor, folder: Path) -> None:
        """Wrap `core`. `folder` is the folder of the tokenizer files, which `save_pretrained` copies."""
        self.core = core
        self.folder = folder

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        tiling: str | Tiling = "paper",
        max_tiles: int | None = None,
        image_options: ImageOptions | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        **others: Any,
    ) -> DeepseekVLV2Processor:
        """Load from a checkpoint folder or a hub id. `tiling` and `max_tiles` are the same as in `vl2.load`."""
        refuse_unknown("the processor's from_pretrained", others)
        folder = locate_checkpoint(pretrained_model_name_or_path, revision=revision, offline=local_files_only)
        rule = tiling if isinstance(tiling, Tiling) else Tiling.parse(tiling)
        return cls(Processor.from_folder(folder, rule, image_options, max_tiles), folder)

    def save_pretrained(self, save_directory: str | Path, **others: Any) -> list[str]:
        """Write processor_config.json and the tokenizer files. Return their paths."""
        refuse_unknown("the processor's save_pretrained", others)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        config = {**self.core.config.to_dict(), "processor_class": type(self).__name__}
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        (folder / PROCESSOR_FILE).write_text(text, encoding="utf-8")
        files = [file for name in TOKENIZER_FILES if (file := self.folder / name).is_file()]
        for file in files:
            if file.parent.resolve() != folder.resolve():
                shutil.copyfile(file, folder / file.name)
        return [str(folder / name) for name in (PROCESSOR_FILE, *(file.name for file in files))]

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        *,
        padding: bool = True,
        padding_side: Side = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encode raw prompts without a chat template. Each `<image>` in a text stands for the next image.

        For one text, `images` is an image or a list of images; for several texts, it has one such entry per text.
        """
        texts, per_text = ([text], [images]) if isinstance(text, str) else (list(text), _per_text(text, images))
        samples = [self.core.encode_prompt(t, _image_list(i)) for t, i in zip(texts, per_text, strict=True)]
        return _features(samples, padding, padding_side, return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        padding: bool = True,
        padding_side: Side = "left",
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Encode one conversation or several, with messages as in transformers, OpenAI or the released code.

        If the last turn is the user's, `add_generation_prompt` must be True. If it is the assistant's, it is closed,
        or left open with `continue_final_message`.
        """
        if not tokenize or not return_dict:
            raise UserError(
                "tokenize and return_dict must be True: the template returns token ids and images, not text, so that "
                "no text can imitate a role"
            )
        is_one = bool(conversation) and isinstance(conversation[0], Mapping)
        samples = [
            self._encode(c, add_generation_prompt, continue_final_message)
            for c in ([conversation] if is_one else conversation)
        ]
        return _features(samples, padding, padding_side, return_tensors)

    def _encode(self, conversation: Any, opens_answer: bool, continues: bool) -> Sample:
        if isinstance(conversation, Sequence):
            conversation = [_plain_message(message) for message in conversation]
        turns = to_turns(conversation)
        last = turns[-1]
        # In the released code's format a last, empty assistant turn asks for the answer.
        awaits_answer = last.role == "user" or not last.text
        if awaits_answer and not opens_answer:
            raise UserError("the last turn is the user's: give add_generation_prompt=True")
        if opens_answer and not awaits_answer:
            raise UserError("the last turn is the assistant's: continue it with continue_final_message=True")
        return self.core.encode(turns, train=not (opens_answer or continues))

    def decode(self, token_ids: Tensor | Iterable[int], skip_special_tokens: bool | None = None) -> str:
        """Decode token ids. By default bos, eos, pad and image tokens are dropped and grounding tags are kept;
        with True every special token is dropped, with False none."""
        ids = token_ids.tolist() if isinstance(token_ids, Tensor) else list(token_ids)
        return self.core.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(
        self, sequences: Tensor | Iterable[Iterable[int]], skip_special_tokens: bool | None = None
    ) -> list[str]:
        return [self.decode(row, skip_special_tokens) for row in sequences]

    @property
    def bos_token_id(self) -> int:
        return self.core.tokenizer.bos_id

    @property
    def eos_token_id(self) -> int:
        return self.core.tokenizer.eos_id

    @property
    def pad_token_id(self) -> int:
        return self.core.tokenizer.pad_id


VL2Processor = DeepseekVLV2Processor


def _features(samples: Sequence[Sample], padding: bool, side: Side, return_tensors: str) -> BatchFeature:
    if return_tensors != "pt":
        raise UserError(f"return_tensors must be 'pt', got {return_tensors!r}")
    if not padding and len({len(sample) for sample in samples}) > 1:
        raise UserError("rows of unequal length need padding=True")
    return BatchFeature(model_inputs(collate(samples, pad=side)))


def _per_text(texts: Sequence[str], images: Any) -> list[Any]:
    if images is None:
        return [None] * len(texts)
    if not isinstance(images, Sequence) or isinstance(images, str | bytes) or len(images) != len(texts):
        raise UserError(f"for {len(texts)} texts, images must be a list of {len(texts)} entries")
    return list(images)


def _image_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _plain_message(message: Any) -> Any:
    """Rewrite transformers' image parts (`url`, `path`, `base64`) of a message as {"type": "image", "image": ...}."""
    if not isinstance(message, Mapping) or not isinstance(message.get("content"), list | tuple):
        return message
    return {**message, "content": [_plain_part(part) for part in message["content"]]}


def _plain_part(part: Any) -> Any:
    if not isinstance(part, Mapping) or part.get("type") != "image" or "image" in part:
        return part
    if "base64" in part:
        try:
            return {"type": "image", "image": base64.b64decode(part["base64"], validate=True)}
        except (binascii.Error, TypeError, ValueError):
            raise UserError("an image part's base64 is not valid base64") from None
    source = part.get("url", part.get("path"))
    return part if source is None else {"type": "image", "image": source}
