"""Prepare the functions of a request: whether they are described to the model, and the constraint on its calls."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import Request

from vl2.errors import UserError
from vl2.infer.constraint import Constraint, JsonSchema
from vl2.infer.constraint_boxes import WellFormedBoxes
from vl2.infer.constraint_tools import ToolCalls
from vl2.process.conversation import Turn
from vl2.process.processor import Processor
from vl2.process.sample import Sample
from vl2.process.tool_calls import ToolCallReader, ToolUse
from vl2.serve.api_errors import ApiError
from vl2.serve.exchange import AnswerText
from vl2.serve.ignored import record_ignored
from vl2.serve.service import Admission, Service

MOST_OF_CONTEXT = 0.5  # the share of the context that functions which need not be called may take


@dataclass(frozen=True, kw_only=True)
class AnswerForm:
    """The functions that are described to the model, if any, and the constraint on its answer."""

    use: ToolUse | None
    constraint: Constraint | None

    def describe_in(self, turns: list[Turn]) -> list[Turn]:
        """Return a conversation in which the functions are described."""
        return turns if self.use is None else self.use.describe_in(turns)

    def answer_text(self, sample: Sample, processor: Processor) -> AnswerText:
        """Return an empty answer, which reads calls if there are functions."""
        calls = None if self.use is None else ToolCallReader()
        return AnswerText(sample=sample, processor=processor, calls=calls)


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


async def prepare_form(
    service: Service,
    request: Request,
    admission: Admission,
    turns: Sequence[Turn],
    use: ToolUse | None,
    constraint: Constraint | None,
) -> AnswerForm:
    """Return the form of the answers to a conversation. `constraint` is that of answers in words.

    Functions that need not be called are ignored, and named in the header, where the backend calls none, or where
    their description would leave too little of the context. Raise ApiError if a call is required and cannot be had,
    and UserError or ApiError for a schema that cannot be followed.
    """
    has_images = any(turn.images for turn in turns)
    form = await _prepare_tools(service, request, admission, use, constraint, has_images=has_images)
    try:
        await service.prepare_constraint(form.constraint, admission, has_images=has_images)
    except UserError as error:
        if form.use is None:
            raise
        raise ApiError(400, str(error), param="tools") from None
    return form


async def _prepare_tools(
    service: Service,
    request: Request,
    admission: Admission,
    use: ToolUse | None,
    constraint: Constraint | None,
    *,
    has_images: bool,
) -> AnswerForm:
    plain = AnswerForm(use=None, constraint=constraint)
    if use is None:
        return plain
    if not service.settings.calls_tools or not service.backend.calls_tools:
        if use.is_required:
            raise ApiError(400, 'this server calls no tools: only "auto" and "none" are possible', param="tool_choice")
        record_ignored(request, "tools")
        return plain
    if isinstance(constraint, WellFormedBoxes):
        raise ApiError(400, "well_formed_boxes cannot be combined with tools", param="well_formed_boxes")
    answer = constraint if isinstance(constraint, JsonSchema) else None

    def build() -> ToolCalls | None:
        return None if not use.is_required and _is_too_long(service, use) else ToolCalls(use, answer, is_checked=False)

    async def prepare() -> ToolCalls | None:
        # This takes long for the longest lists of functions, so requests take turns for it.
        await admission.wait(has_images=has_images)
        return await service.in_thread(build)

    try:
        calls = await service.run_unless_aborted(prepare())
    except UserError as error:
        raise ApiError(400, str(error), param="tools") from None
    if calls is None:
        record_ignored(request, "tools")
        return plain
    return AnswerForm(use=use, constraint=calls)


def _is_too_long(service: Service, use: ToolUse) -> bool:
    tokenizer = service.backend.processor.tokenizer
    return len(tokenizer.encode(use.prompt())) > MOST_OF_CONTEXT * service.backend.max_context
