"""MMMU: college-level multiple choice over several images, with the prompts of two protocols.

The published figures (40.7, 48.0 and 51.1 on the validation split) are those of VLMEvalKit's adapter
for this model. It rewrites the benchmark's prompt and doubles the sides of the first image, which
gives that image a finer grid; with the plain prompt the small size loses about 12 points.

Source: VLMEvalKit, vlm/deepseek_vl2.py and the MMMU prompt of its multiple-choice data set.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from PIL import Image

from vl2.errors import UserError

Protocol = Literal["vlmevalkit", "plain"]

PUBLISHED_PROTOCOL: Protocol = "vlmevalkit"
MAX_NEW_TOKENS = 512  # greedy

CHOOSE = "Please select the correct answer from the options above."
CHOOSE_REWRITTEN = (
    "Answer with the option's letter from the given choices directly. "
    "Answer the question using a single word or phrase.\n"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `<image k>` in its text or options stands for the k-th image."""

    text: str
    options: Sequence[str]
    images: Sequence[Image.Image]


def plain_prompt(question: Question) -> str:
    """Return the benchmark's own prompt, with its `<image k>` marks."""
    lines = [f"Question: {question.text}"]
    if question.options:
        lines += ["Options:", *(f"{string.ascii_uppercase[i]}. {o}" for i, o in enumerate(question.options)), CHOOSE]
    return "\n".join(lines) + "\n"


def messages(question: Question, protocol: Protocol = PUBLISHED_PROTOCOL) -> list[dict[str, Any]]:
    """Return the conversation that asks a question, in the released message form."""
    if protocol not in get_args(Protocol):
        raise UserError(f"MMMU's protocols are {', '.join(get_args(Protocol))}, got {protocol}")
    prompt, images = plain_prompt(question), list(question.images)
    if protocol == "vlmevalkit":
        # All images stand first; the marks stay in the text as words.
        prompt = prompt.replace(CHOOSE, CHOOSE_REWRITTEN).replace("Question:", "").replace("Options:\n", "")
        content = "<image>" * len(images) + "\n" + prompt
        images[:1] = [_doubled(image) for image in images[:1]]
    else:
        order = [int(number) - 1 for number in re.findall(r"<image (\d+)>", prompt)]
        if any(not 0 <= index < len(images) for index in order):
            raise UserError(f"the question names image {max(order) + 1}, and has {len(images)}")
        content = re.sub(r"<image \d+>", "<image>\n", prompt)
        images = [images[index] for index in order]
    return [
        {"role": "<|User|>", "content": content, "images": images},
        {"role": "<|Assistant|>", "content": ""},
    ]


def read_answer(text: str) -> str:
    """Return the answer as the adapter hands it to the scorer: without trailing full stops."""
    return text.rstrip(".")


def _doubled(image: Image.Image) -> Image.Image:
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.BILINEAR)
