"""Make records of questions and answers, and the standard instructions that converters add to them.

If an instruction has several wordings, the record's id selects one, so that conversion is deterministic.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vl2.data.record import Labeled, Message, Part, Record, StoredImage
from vl2.datasets.conversion import Conversion
from vl2.errors import UserError

# The wordings of the benchmarks, so that the model learns when a short answer is wanted.
SHORT_ANSWER = "Answer the question using a single word or phrase."
OPTION_LETTER = "Answer with the option's letter from the given choices directly."

DESCRIBE = (
    "Can you describe this image?",
    "Describe the image.",
    "What is in this picture?",
    "Write a caption for this image.",
    "What does the image show?",
)
DESCRIBE_IN_DETAIL = (
    "Can you describe this image in detail?",
    "Describe the image in detail.",
    "What do you see? Be as thorough as you can.",
    "Give a detailed description of this picture.",
)
TRANSCRIBE = (
    "Read all the text in the image.",
    "What text is in this image?",
    "Transcribe the image line by line.",
    "Extract the text of this picture.",
)
TABLE_TO_HTML = (
    "Convert the table in the image to HTML.",
    "Write this table as HTML.",
    "Give the HTML of the table shown.",
)
PAGE_TO_HTML = (
    "Write the HTML of the web page in the screenshot.",
    "Turn this screenshot into code.",
    "Generate the HTML for this page.",
)

Turn = tuple[str, str]  # (the user's question, the assistant's answer)

_IMAGE = re.compile(r"\s*<image>\s*")


def short_question(question: str) -> str:
    return f"{question.strip()}\n{SHORT_ANSWER}"


def choice_question(question: str, options: Sequence[str]) -> str:
    """Return a question with its options lettered from A and the instruction to answer with a letter."""
    lettered = [f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(options)]
    return "\n".join([question.strip(), *lettered, OPTION_LETTER])


def converse(
    conversion: Conversion,
    id: object,
    turns: Sequence[Turn],
    images: Sequence[StoredImage] = (),
    *,
    category: str | None = None,
    objects: Sequence[Labeled] = (),
) -> Record:
    """Return the record of a conversation whose images come first. Raise UserError for an empty text."""
    messages: list[Message] = []
    for question, answer in turns:
        shown = [Part(image=i) for i in range(len(images))] if not messages else []
        messages.append(Message(role="user", parts=(*shown, Part(text=require_text(question, "question")))))
        messages.append(Message(role="assistant", parts=(Part(text=require_text(answer, "answer")),)))
    return record(conversion, id, messages, images, category=category, objects=objects)


def record(
    conversion: Conversion,
    id: object,
    messages: Sequence[Message],
    images: Sequence[StoredImage] = (),
    *,
    category: str | None = None,
    objects: Sequence[Labeled] = (),
) -> Record:
    return Record(
        id=f"{conversion.source}-{id}",
        source=conversion.source,
        category=category or conversion.category,
        language=conversion.language,
        licence=conversion.licence,
        messages=tuple(messages),
        images=tuple(images),
        objects=tuple(objects),
    )


def require_text(text: str, what: str) -> str:
    """Strip a text; `what` names it in errors. Raise UserError if it is empty or has an unpaired surrogate."""
    text = text.strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"the {what} is not valid Unicode") from None
    if not text:
        raise UserError(f"the {what} is empty")
    return text


def split_at_images(text: str, first_image: int) -> tuple[list[Part], int]:
    """Split a text at its `<image>` tags. Return the parts, and the number of the next image."""
    parts: list[Part] = []
    pieces = _IMAGE.split(text)
    for number, piece in enumerate(pieces):
        if number:
            parts.append(Part(image=first_image))
            first_image += 1
        if piece.strip():
            parts.append(Part(text=piece.strip()))
    return parts, first_image
