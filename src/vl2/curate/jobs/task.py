"""What a job is: a question made of a record, and a record made of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vl2.curate.jobs.chat_request import ChatRequest
from vl2.curate.jobs.material import Material
from vl2.data.record import Record


class Unsuitable(Exception):
    """The record is not one for this job, or its answer was read and says to drop it. The message is the reason."""


class Unreadable(Exception):
    """The answer is not in the form that was asked for; another try may be."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The record that a job made, and what to note about it."""

    record: Record
    note: str = ""


class DataJob(Protocol):
    """`ask` and `read` depend on their arguments alone, so a job that is run again asks the same questions."""

    @property
    def name(self) -> str: ...

    @property
    def sends_images(self) -> bool: ...

    @property
    def needs_ocr(self) -> bool: ...

    def ask(self, record: Record, material: Material) -> ChatRequest:
        """Return the question. Unsuitable if the record is none for this job."""

    def read(self, record: Record, material: Material, answer: str) -> Made:
        """Return the record made of an answer that was not cut off. Unreadable or Unsuitable say why there is none."""
