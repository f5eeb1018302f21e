"""Phrases that ask where an object is, and that answer that it is absent.

Synthetic and converted records share this pool. Half of the questions use the wording of the released model,
`<|ref|>query<|/ref|>.`, because users will use it. The others are drawn at random, as the report describes; the
first of them is the report's example. Questions about absent objects use the same wordings.
"""

from __future__ import annotations

import random

RELEASED = "<|ref|>{label}<|/ref|>."
LOCATE = {
    "en": (
        "Locate <|ref|>{label}<|/ref|> in the given image.",
        "Where is <|ref|>{label}<|/ref|>?",
        "Where is <|ref|>{label}<|/ref|> in the image?",
        "Find <|ref|>{label}<|/ref|> and give its bounding boxes.",
        "Point out <|ref|>{label}<|/ref|>.",
        "Please mark every <|ref|>{label}<|/ref|> in this picture.",
        "Detect <|ref|>{label}<|/ref|>.",
    ),
    "zh": (
        "请在图中定位<|ref|>{label}<|/ref|>。",
        "<|ref|>{label}<|/ref|>在哪里？",
        "<|ref|>{label}<|/ref|>在图片的什么位置？",
        "找出图中的<|ref|>{label}<|/ref|>，并给出边界框。",
        "框出所有的<|ref|>{label}<|/ref|>。",
        "检测图像里的<|ref|>{label}<|/ref|>。",
    ),
}
# These avoid articles, because a label may be any phrase.
ABSENT = {
    "en": (
        "There is no {label} in the image.",
        "I cannot find any {label} in this image.",
        "No {label} can be seen in the image.",
    ),
    "zh": ("图中没有{label}。", "这张图片里找不到{label}。", "图像中不存在{label}。"),
}


def locate(rng: random.Random, language: str, label: str) -> str:
    """Return a question that asks where something is."""
    wording = RELEASED if rng.random() < 0.5 else rng.choice(LOCATE[language])
    return wording.replace("{label}", label)


def absent(rng: random.Random, language: str, label: str) -> str:
    """Return an answer that something is absent."""
    return rng.choice(ABSENT[language]).replace("{label}", label)
