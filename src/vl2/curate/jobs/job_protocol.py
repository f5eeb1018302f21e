"""The protocol of jobs, which make a request from a record and a record from the answer, and checks of answers."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Protocol

from vl2.curate.jobs.client import ChatRequest
from vl2.curate.jobs.material import Material
from vl2.data.record import PLACEHOLDER, Message, Part, Record


class Unsuitable(Exception):
    """The record does not suit the job, or its answer says to drop it. The message is the reason."""


class Unreadable(Exception):
    """The answer does not have the requested form; another attempt may succeed."""


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """The record that a job made, with an optional note for the ledger of outcomes."""

    record: Record
    note: str = ""


class DataJob(Protocol):
    """A job. `ask` and `read` depend on their arguments alone, so a job that is run again sends equal requests."""

    @property
    def name(self) -> str: ...

    @property
    def sends_images(self) -> bool: ...

    @property
    def needs_ocr(self) -> bool: ...

    def ask(self, record: Record, material: Material) -> ChatRequest:
        """Return the request for a record. Raise Unsuitable if the record does not suit the job."""

    def read(self, record: Record, material: Material, answer: str) -> JobResult:
        """Return the record made from a complete answer. Raise Unreadable or Unsuitable if there is none."""


# Special tokens of the chat format. As text in an answer they would be tokenized as structure.
_SPECIAL = re.compile(r"<\|[^|>\n]{1,24}\|>|<｜[^｜>\n]{1,24}｜>|<image>")
_REFUSALS = re.compile(
    r"^(i'?m sorry|i am sorry|sorry,|i apologi[sz]e|i can(no|')t (help|assist|see|view)|as an ai\b|i'?m unable"
    r"|抱歉|对不起)",
    re.IGNORECASE,
)
NUMBERED = "Write each answer below a line of its own that reads === 1 ===, === 2 === and so on. Write nothing else."
_NUMBER_LINE = re.compile(r"^[ \t]*===[ \t]*(\d+)[ \t]*===[ \t]*$", re.MULTILINE)


def clean_answer(text: str) -> str:
    """Return the stripped answer. Raise Unsuitable for a refusal, Unreadable if it is empty or has special tokens."""
    text = text.strip()
    if not text:
        raise Unreadable("the answer is empty")
    if _REFUSALS.match(text):
        raise Unsuitable(f"the model refused: {' '.join(text.split())[:80]}")
    if _SPECIAL.search(text) or PLACEHOLDER.search(text):
        raise Unreadable("the answer holds tokens of the chat format")
    return text


def numbered_parts(answer: str, count: int) -> list[str]:
    """Return the texts below the lines === 1 ===, === 2 === and so on.

    Raise Unreadable unless there are exactly `count` parts in order.
    """
    pieces = _NUMBER_LINE.split(answer)
    numbers, texts = [int(number) for number in pieces[1::2]], [text.strip() for text in pieces[2::2]]
    if pieces[0].strip():
        raise Unreadable("there is text before === 1 ===")
    if numbers != list(range(1, count + 1)):
        raise Unreadable(f"expected parts 1 to {count}, got {numbers[:20]}")
    return texts


def with_answers(record: Record, answers: list[str]) -> Record:
    """Return the record with its assistant messages replaced by the answers, in order."""
    remaining = iter(answers)
    messages = [
        Message(role="assistant", parts=(Part(text=next(remaining)),)) if message.role == "assistant" else message
        for message in record.messages
    ]
    return replace(record, messages=tuple(messages))


def check_no_boxes(record: Record) -> None:
    """Raise Unsuitable if a text of the record contains boxes, because a new text would lose them."""
    if record.objects and any(PLACEHOLDER.search(part.text or "") for m in record.messages for part in m.parts):
        raise Unsuitable("its texts contain boxes, which a new answer would lose")
