"""Questions and answers that several sources share: where something is, and that it is not there."""

from __future__ import annotations

import random

LOCATE = {
    "en": (
        "Locate <|ref|>{label}<|/ref|> in the given image.",
        "Where is <|ref|>{label}<|/ref|> in the image?",
        "Find <|ref|>{label}<|/ref|> and give its bounding boxes.",
        "Point out <|ref|>{label}<|/ref|>.",
        "Please mark every <|ref|>{label}<|/ref|> in this picture.",
        "Detect <|ref|>{label}<|/ref|>.",
    ),
    "zh": (
        "请在图中定位<|ref|>{label}<|/ref|>。",
        "<|ref|>{label}<|/ref|>在图片的什么位置？",
        "找出图中的<|ref|>{label}<|/ref|>，并给出边界框。",
        "框出所有的<|ref|>{label}<|/ref|>。",
        "检测图像里的<|ref|>{label}<|/ref|>。",
    ),
}
ABSENT = {
    "en": (
        "There is no {label} in the image.",
        "I cannot find any {label} in this image.",
        "The image does not show a {label}.",
    ),
    "zh": ("图中没有{label}。", "这张图片里找不到{label}。", "图像中不存在{label}。"),
}


def locate(rng: random.Random, language: str, label: str) -> str:
    """Return a question that asks where something is."""
    return rng.choice(LOCATE[language]).format(label=label)


def absent(rng: random.Random, language: str, label: str) -> str:
    """Return the answer that something is not there."""
    text = rng.choice(ABSENT[language]).format(label=label)
    return text.replace(" a " + label, f" {article(label)}") if language == "en" else text


def article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter."""
    return f"{'an' if noun[:1].lower() in 'aeio' else 'a'} {noun}"
