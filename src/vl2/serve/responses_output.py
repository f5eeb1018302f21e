"""The output items of a Responses answer, a message and calls of functions, and the events of a stream of them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from vl2.process.tool_calls import CallPiece
from vl2.serve.exchange import AnswerText, Event
from vl2.serve.tools import new_call_id

NamedEvent = tuple[str, Event]  # the name after "response.", and the fields


class OutputItems:
    """Builds the items of one answer as it is generated. A message is the first item, if there is one.

    An answer without calls always has a message, which may be empty. A call that was cut off is not among the items.
    """

    def __init__(self, text: AnswerText) -> None:
        self._text = text
        self.items: list[Event] = []  # the finished ones
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._is_in_message = False
        self._call: Event = {}  # the call that has begun, if any

    def add(self, piece: str) -> list[NamedEvent]:
        """Return the events of new text, and of the calls that have grown with it."""
        events: list[NamedEvent] = []
        if piece or self._text.calls is None:
            events += self._begin_message()
        if piece:
            events.append(("output_text.delta", {**self._place(), "delta": piece, "logprobs": []}))
        for call_piece in self._text.calls.take() if self._text.calls else ():
            events += self._end_message() if self._is_in_message else []
            events += self._call_events(call_piece)
        return events

    def finish(self) -> list[NamedEvent]:
        """Return the events at the end of the answer. Without a stream, this adds all of it."""
        events: list[NamedEvent] = []
        if self._text.text and not self.items:
            events += self._begin_message()
        events += self.add("") if self._text.calls else []
        if not self.items and not self._call:
            events += self._begin_message()
        events += self._end_message() if self._is_in_message else []
        if self._call:
            cut_off = {**self._call, "status": "incomplete"}
            events.append(("output_item.done", {"output_index": len(self.items), "item": cut_off}))
        return events

    def _place(self) -> Event:
        return {"item_id": self._message_id, "output_index": 0, "content_index": 0}

    def _message(self, status: str, parts: list[Event]) -> Event:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _begin_message(self) -> list[NamedEvent]:
        if self._is_in_message:
            return []
        self._is_in_message = True
        return [
            ("output_item.added", {"output_index": 0, "item": self._message("in_progress", [])}),
            ("content_part.added", {**self._place(), "part": _part("", {"boxes": []})}),
        ]

    def _end_message(self) -> list[NamedEvent]:
        text = self._text
        self._is_in_message = False
        part = _part(text.text, text.box_fields())
        item = self._message("incomplete" if text.finish_reason == "length" else "completed", [part])
        self.items.append(item)
        return [
            ("output_text.done", {**self._place(), "text": text.text, "logprobs": []}),
            ("content_part.done", {**self._place(), "part": part}),
            ("output_item.done", {"output_index": 0, "item": item}),
        ]

    def _call_events(self, piece: CallPiece) -> Iterator[NamedEvent]:
        index = len(self.items)
        if piece.name is not None:
            self._call = {
                "id": f"fc_{uuid.uuid4().hex}",
                "type": "function_call",
                "status": "in_progress",
                "call_id": new_call_id(),
                "name": piece.name,
                "arguments": "",
            }
            yield "output_item.added", {"output_index": index, "item": dict(self._call)}
        place = {"item_id": self._call["id"], "output_index": index}
        if piece.arguments:
            self._call["arguments"] += piece.arguments
            yield "function_call_arguments.delta", {**place, "delta": piece.arguments}
        if piece.is_last:
            item, self._call = {**self._call, "status": "completed"}, {}
            self.items.append(item)
            named = {"name": item["name"], "arguments": item["arguments"]}
            yield "function_call_arguments.done", {**place, **named}
            yield "output_item.done", {"output_index": index, "item": item}


def _part(text: str, box_fields: dict[str, Any]) -> Event:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": [], **box_fields}
