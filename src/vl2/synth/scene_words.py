"""Phrases about scenes in English and Chinese: questions, captions and amounts."""

from __future__ import annotations

from collections.abc import Sequence

from vl2.synth.nouns import article, is_plural, plural
from vl2.synth.sprites import Kind

NUMBERS_EN = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS_ZH = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")

NAME_IT = {
    "en": (
        ("What is this?", "This is {a_name}.", "It is {a_name}."),
        ("What does the picture show?", "The picture shows {a_name}.", "It shows {a_name}."),
        ("Name the object in the image.", "{name}"),
        ("Write a short caption.", "A picture of {a_name}."),
    ),
    "zh": (
        ("这是什么？", "这是{name}。"),
        ("图片里画的是什么？", "图片里画的是{name}。"),
        ("请说出图中物体的名称。", "{name}"),
        ("给图片写一个简短的说明。", "一张{name}的图片。"),
    ),
}
DESCRIBE = {
    "en": ("Describe the image.", "What is in this picture?", "Write a caption for this image.", "What can you see?"),
    "zh": ("请描述这张图片。", "图片里有什么？", "为这张图写一段说明。", "你看到了什么？"),
}
GROUNDED = {
    "en": (
        "Can you describe the content of the image?",
        "Describe the picture and say where everything is.",
        "What is in the image? Give the places.",
    ),
    "zh": ("请描述图片的内容。", "描述这张图，并指出每样东西的位置。", "图中有什么？请给出位置。"),
}
CAPTION = {
    "en": ("The image shows {things}.", "There are {things} in the picture.", "In this scene you can see {things}."),
    "zh": ("图中有{things}。", "这张图片里有{things}。", "画面上可以看到{things}。"),
}
COUNT = {
    "en": ("How many {noun} are there?", "Count the {noun} in the image.", "What is the number of {noun}?"),
    "zh": ("图中有几{measure}{noun}？", "数一数有多少{measure}{noun}。", "一共有多少{measure}{noun}？"),
}
PRESENCE = {
    "en": ("Is there {a_name} in the image?", "Does the picture show {a_name}?", "Can you see {a_name}?"),
    "zh": ("图中有{name}吗？", "图片里有没有{name}？", "画面上有{name}吗？"),
}
COLOR_OF = {
    "en": ("What colour is the {name}?", "Which colour does the {name} have?"),
    "zh": ("{name}是什么颜色的？", "图中的{name}是什么颜色？"),
}
OF_COLOR = {
    "en": ("What is {color}?", "Which thing is {color}?"),
    "zh": ("什么是{color}的？", "{color}的是什么？"),
}
DETECT = {
    "en": ("Detect all objects in the image.", "Locate every object.", "Find all the things and give their boxes."),
    "zh": ("检测图中的所有物体。", "请定位每一个物体。", "找出所有的东西，并给出边界框。"),
}
WHERE = {
    "en": "Where is the {first} relative to the {second}: left, right, above or below?",
    "zh": "{first}在{second}的哪一边：左边、右边、上方还是下方？",
}
SIDES = {
    "en": {
        "caption": "The {first} is {side} the {second}.",
        "left": "to the left of", "right": "to the right of", "above": "above", "below": "below",
        "left_answer": "Left", "right_answer": "Right", "above_answer": "Above", "below_answer": "Below",
    },
    "zh": {
        "caption": "{first}在{second}的{side}。",
        "left": "左边", "right": "右边", "above": "上方", "below": "下方",
        "left_answer": "左边", "right_answer": "右边", "above_answer": "上方", "below_answer": "下方",
    },
}  # fmt: skip


def amount(kind: Kind, count: int, language: str) -> str:
    """Return an amount in words, such as "a red car", "two red cars" or "两辆红色的汽车"."""
    name = kind.full_name(language)
    if language == "zh":
        return f"{NUMBERS_ZH[count]}{kind.measure_zh}{name}"
    return article(name) if count == 1 else f"{NUMBERS_EN[count]} {plural(name)}"


def join(items: Sequence[str], language: str) -> str:
    """Join items to a phrase, such as "a car, a tree and a house"."""
    glue, last = ("、", "和") if language == "zh" else (", ", " and ")
    return glue.join(items[:-1]) + last + items[-1] if len(items) > 1 else items[0]


def named(answer: str, name: str) -> str:
    """Insert a name into an answer such as "This is {a_name}.". English plurals change it to "These are"."""
    if "{a_name}" in answer and is_plural(name):
        for one, many in (("This is", "These are"), ("It is", "They are"), ("it is", "they are")):
            answer = answer.replace(one, many)
    return answer.format(name=name, a_name=article(name))
