"""Extract one object from each document: ask under the schema, check the answer, and find where its values stand.

An answer is constrained to the schema while it is generated, and checked afterwards by another library. One that was
cut off is asked for again with twice the tokens; one that the check refuses, by a draw at a temperature. What still
fails is reported, never returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from PIL import Image

from vl2.errors import UserError
from vl2.extract.leaves import leaves, printed_forms
from vl2.extract.target import Target, read_target
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.prompts import locate_prompt
from vl2.infer.reply import Reply
from vl2.infer.sampling import GenerateOptions
from vl2.infer.vlm import Request
from vl2.process.conversation import one_question
from vl2.process.grounding import BoxPx

ATTEMPTS = 3
RETRY_TEMPERATURE = 0.5
MAX_LOCATED = 40  # values of a document whose places the model is asked for
LOCATE_TOKENS = 96


class Answerer(Protocol):
    """What extraction needs of a `VLM`."""

    def batch(self, requests: Sequence[Any], /) -> list[Reply]: ...


@dataclass(frozen=True, kw_only=True)
class Page:
    """A page of a document as a picture, and a way to find text on it."""

    image: Image.Image
    find: Callable[[str], BoxPx | None] | None = None  # in the text layer, if the page has one


@dataclass(frozen=True, kw_only=True)
class Document:
    """A document; `pages` are opened when it is its turn, and may raise UserError."""

    name: str
    pages: Callable[[], Sequence[Page]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a value stands: the box on a page, x0, y0, x1, y1 in pixels, and what said so."""

    page: int  # from 1
    box_px: BoxPx
    source: str  # "text layer", or "model"

    def to_dict(self) -> dict[str, Any]:
        return {"page": self.page, "box_px": [round(v, 1) for v in self.box_px], "source": self.source}


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The object of one document, or why there is none."""

    name: str
    value: dict[str, Any] | None = None
    instance: Any = None  # of the Pydantic class, if the target is one
    places: dict[str, Place] = field(default_factory=dict)  # by the value's path, such as "items/0/price"
    attempts: int = 0
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the line of the output."""
        line: dict[str, Any] = {"id": self.name, "attempts": self.attempts}
        if self.error is not None:
            return {**line, "error": self.error}
        return {**line, "value": self.value, "places": {path: place.to_dict() for path, place in self.places.items()}}


def extract(
    vlm: Answerer,
    documents: Sequence[Document],
    target: object,
    *,
    options: GenerateOptions | None = None,
    question: str | None = None,
    with_places: bool = True,
    max_new_tokens: int = 8192,
    together: int = 8,
) -> Iterator[Extraction]:
    """Yield an extraction for each document, in their order.

    `target` is a JSON schema, the path of one, or a Pydantic class. `question` replaces the one that is made of the
    schema. `options` are those of the first attempt; further ones may take up to `max_new_tokens`. `together` documents
    are answered at once. Raise UserError if the target is invalid; a document's own errors are in its extraction.
    """
    wanted = read_target(target)
    first = replace(options or GenerateOptions(max_new_tokens=1024, max_repeats=8), constraint=wanted.constraint)
    asked = question or wanted.question()
    for start in range(0, len(documents), together):
        window = [_Work(document=document) for document in documents[start : start + together]]
        for work in window:
            work.open()
        for attempt in range(1, ATTEMPTS + 1):
            left = [work for work in window if work.is_open]
            _ask(vlm, left, wanted, asked, _attempt_options(first, attempt, left, max_new_tokens))
        if with_places:
            _find_places(vlm, [work for work in window if work.value is not None])
        yield from (work.result(wanted) for work in window)


def _attempt_options(
    first: GenerateOptions, attempt: int, works: Sequence[_Work], max_new_tokens: int
) -> list[GenerateOptions]:
    """Return the options of each document's next attempt."""
    made = []
    for work in works:
        options = first
        if work.was_cut:
            tokens = min(first.max_new_tokens * 2 ** (attempt - 1), max(max_new_tokens, first.max_new_tokens))
            options = replace(options, max_new_tokens=tokens)
        elif attempt > 1:
            options = replace(options, temperature=max(first.temperature, RETRY_TEMPERATURE), seed=attempt)
        made.append(options)
    return made


@dataclass(kw_only=True)
class _Work:
    """A document in work."""

    document: Document
    pages: Sequence[Page] = ()
    value: dict[str, Any] | None = None
    error: str | None = None
    attempts: int = 0
    was_cut: bool = False
    is_hopeless: bool = False
    places: dict[str, Place] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        return self.value is None and not self.is_hopeless

    def open(self) -> None:
        try:
            self.pages = self.document.pages()
            if not self.pages:
                raise UserError(f"{self.document.name} has no pages")
        except UserError as error:
            self.fail(error)

    def fail(self, error: UserError) -> None:
        self.error, self.is_hopeless = " ".join(str(error).split()), True

    def take(self, reply: Reply, target: Target) -> None:
        """Keep the object of an answer, or note why there is none."""
        self.attempts += 1
        self.was_cut = reply.finish_reason in ("length", "repetition")
        try:
            if reply.finish_reason == "cancelled":
                raise UserError("the answer was canceled")
            self.value, self.error = target.check(reply.text), None
        except UserError as error:
            tokens = reply.usage.completion_tokens
            self.error = f"cut off after {tokens} tokens: {error}" if self.was_cut else str(error)

    def result(self, target: Target) -> Extraction:
        name, attempts = self.document.name, self.attempts
        if self.value is None:
            return Extraction(name=name, attempts=attempts, error=self.error or "there was no answer")
        instance = None if target.model is None else target.instance(self.value)
        return Extraction(name=name, value=self.value, instance=instance, places=self.places, attempts=attempts)


def _ask(
    vlm: Answerer, works: Sequence[_Work], target: Target, question: str, options: Sequence[GenerateOptions]
) -> None:
    requests = [
        Request(messages=one_question(question, [page.image for page in work.pages]), options=made)
        for work, made in zip(works, options, strict=True)
    ]
    for work, reply in zip(works, _answers(vlm, works, requests), strict=True):
        if reply is not None:
            work.take(reply, target)


def _answers(vlm: Answerer, works: Sequence[_Work], requests: Sequence[Request]) -> list[Reply | None]:
    """Answer together; if that is refused, one by one, so that one document's error is its own."""
    if not requests:
        return []
    try:
        return list(vlm.batch(requests))
    except UserError:
        pass
    replies: list[Reply | None] = []
    for work, request in zip(works, requests, strict=True):
        try:
            replies += vlm.batch([request])
        except UserError as error:
            work.fail(error)
            replies.append(None)
    return replies


def _find_places(vlm: Answerer, works: Sequence[_Work]) -> None:
    """Find the values on the pages: in the text layer, and where there is none by asking the model."""
    asked: list[tuple[_Work, str, int]] = []
    requests: list[Request] = []
    boxes = GenerateOptions(max_new_tokens=LOCATE_TOKENS, constraint=WellFormedBoxes())
    for work in works:
        num_asked = 0
        for path, value in leaves(work.value):
            place = _in_text_layer(work.pages, value)
            if place is not None:
                work.places[path] = place
                continue
            for number, page in enumerate(work.pages, start=1):
                if page.find is None and num_asked < MAX_LOCATED:
                    num_asked += 1
                    asked.append((work, path, number))
                    prompt = locate_prompt(f"the text {printed_forms(value)[0]!r}")
                    requests.append(Request(messages=one_question(prompt, [page.image]), options=boxes))
    works_of = [work for work, _, _ in asked]
    for (work, path, number), reply in zip(asked, _answers(vlm, works_of, requests), strict=True):
        if reply is not None and reply.boxes and path not in work.places:
            work.places[path] = Place(page=number, box_px=reply.boxes[0].xyxy_px, source="model")


def _in_text_layer(pages: Sequence[Page], value: str | float) -> Place | None:
    for form in printed_forms(value):
        for number, page in enumerate(pages, start=1):
            box_px = None if page.find is None else page.find(form)
            if box_px is not None:
                return Place(page=number, box_px=box_px, source="text layer")
    return None
