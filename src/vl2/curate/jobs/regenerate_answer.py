"""Answer the questions of a record anew, from the image, the question and the text on the image.

The paper's remedy for public answers that are short, poor in OCR or made up (arXiv 2412.10302, section 3). The old
answers are not shown: a model that sees one repeats it. The prompts are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from vl2.curate.jobs.answer_text import NUMBERED, check_no_boxes, checked, numbered_parts, with_answers
from vl2.curate.jobs.chat_request import ChatRequest
from vl2.curate.jobs.material import Material
from vl2.curate.jobs.task import Made, Unsuitable
from vl2.data.record import Record

SYSTEM = (
    "You answer questions about images. Rely on the image. The OCR text was read off it by a machine: it helps with "
    "small print and may hold errors. Never mention the OCR text. If the image does not hold the answer, say so in one "
    "sentence. Answer each question in the language it is asked in."
)
STYLE = "Answer in one to three full sentences, and say where in the image the answer is seen when that helps."
STYLE_OF_CATEGORY = {
    "reasoning": "Work step by step, one step a line, and end with the final answer on its last line.",
    "academic": "Explain the reasoning briefly, then give the answer on its last line.",
    "table_chart": "Give the values that the answer rests on, then the answer with its unit.",
    "ocr": "Give the text exactly as it is written, with its line breaks, and nothing else.",
    "web_to_code": "Give the complete code in one code block, and nothing else.",
    "plot_to_code": "Give the complete code in one code block, and nothing else.",
}


@dataclass(frozen=True, kw_only=True)
class RegenerateAnswer:
    max_tokens: int = 1536
    name: str = "regenerate_answer"
    sends_images: bool = True
    needs_ocr: bool = True

    def ask(self, record: Record, material: Material) -> ChatRequest:
        check_no_boxes(record)
        questions = _questions(record)
        listed = "\n".join(f"{number}. {question}" for number, question in enumerate(questions, start=1))
        style = STYLE_OF_CATEGORY.get(record.category, STYLE)
        hints = material.ocr_hints()
        ocr = [f"OCR text:\n{hints}"] if hints else []
        text = "\n\n".join([f"Questions:\n{listed}", *ocr, style, NUMBERED])
        return ChatRequest(system=SYSTEM, text=text, images=material.images, max_tokens=self.max_tokens)

    def read(self, record: Record, material: Material, answer: str) -> Made:
        checked(answer)
        answers = [checked(part) for part in numbered_parts(answer, len(_questions(record)))]
        return Made(record=with_answers(record, answers))


def _questions(record: Record) -> list[str]:
    """Return the texts of the user, one for each turn. Unsuitable unless turns alternate and all hold text."""
    turns = [message for message in record.messages if message.role != "system"]
    roles = [message.role for message in turns]
    if roles != ["user", "assistant"] * (len(turns) // 2):
        raise Unsuitable("its turns are not questions and answers in turn")
    questions = [" ".join(part.text for part in turn.parts if part.text is not None).strip() for turn in turns[::2]]
    if not all(questions):
        raise Unsuitable("a turn of the user holds no text")
    return questions
