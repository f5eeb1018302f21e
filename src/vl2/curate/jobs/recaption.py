"""Caption images again, with what is known about them: the text on them, their meta information, the old caption.

The pipeline of the paper (arXiv 2412.10302, section 3): OCR hints, meta information such as location and camera
settings, and the original caption go into the prompt, with varied instructions as in PixelProse. The prompts are ours.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vl2.curate.filters.words import texts_of
from vl2.curate.jobs.answer_text import check_no_boxes, checked, with_answers
from vl2.curate.jobs.chat_request import ChatRequest
from vl2.curate.jobs.material import Material
from vl2.curate.jobs.task import Made, Unsuitable
from vl2.data.record import Record
from vl2.errors import UserError

SYSTEM = (
    "You write captions that teach a model to see. Say only what the picture shows. The hints may be wrong or "
    "incomplete: use one only where the picture agrees with it, and never mention hints, OCR, metadata or captions. "
    "Quote text on the picture exactly, in its own language. Do not repeat yourself, do not guess at feelings, "
    "do not end with a summary. Write plain prose without headings."
)
INSTRUCTIONS = (
    "Describe every detail of this image.",
    "Describe this image so that someone who cannot see it could draw it.",
    "Write a detailed caption: the main subject first, then what surrounds it, then the background.",
    "What does this image show? Name the objects, their number, colours, positions and how they relate.",
    "Write one dense paragraph about this image, from its left to its right.",
    "Describe this image: the subject, the setting, the light, the viewpoint, the style or medium.",
    "Write a caption of three to five sentences for this image, with any text on it quoted.",
    "Explain what can be seen here, most important things first, and leave nothing visible out.",
)
LANGUAGES = {"en": "English", "zh": "simplified Chinese"}
_MAX_CAPTION_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Recaption:
    """`meta` holds lines of further information by record id, such as {"a-1": {"location": "Lisbon"}}."""

    meta: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    max_tokens: int = 1024
    language: str = ""  # of the new captions, en or zh; empty is that of the record
    name: str = "recaption"
    sends_images: bool = True
    needs_ocr: bool = True

    def __post_init__(self) -> None:
        if self.language and self.language not in LANGUAGES:
            raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {self.language!r}")

    def ask(self, record: Record, material: Material) -> ChatRequest:
        if not record.images:
            raise Unsuitable("it has no image")
        answers = [message for message in record.messages if message.role == "assistant"]
        if len(answers) != 1:
            raise Unsuitable(f"a caption is one answer, the record has {len(answers)}")
        check_no_boxes(record)
        text = "\n\n".join([instruction_for(record.id), *self._hints(record, material), *self._written_in(record)])
        return ChatRequest(system=SYSTEM, text=text, images=material.images, max_tokens=self.max_tokens)

    def read(self, record: Record, material: Material, answer: str) -> Made:
        made = with_answers(record, [checked(answer)])
        return Made(record=replace(made, language=self.language or record.language))

    def _hints(self, record: Record, material: Material) -> list[str]:
        meta = [f"{name}: {value}" for name, value in self.meta.get(record.id, {}).items()]
        meta += [line for lines in material.camera for line in lines]
        caption = "\n".join(texts_of(record, "assistant"))[:_MAX_CAPTION_CHARACTERS]
        known = (
            ("Text read off the image by OCR", material.ocr_hints()),
            ("Meta information", "\n".join(meta)),
            ("Original caption", caption),
        )
        return [f"{title}:\n{text}" for title, text in known if text.strip()]

    def _written_in(self, record: Record) -> list[str]:
        name = LANGUAGES.get(self.language or record.language)
        return [f"Write in {name}."] if name else []


def instruction_for(record_id: str) -> str:
    """Return one of the instructions, always the same for a record."""
    return INSTRUCTIONS[zlib.crc32(record_id.encode("utf-8", "replace")) % len(INSTRUCTIONS)]
