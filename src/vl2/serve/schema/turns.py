"""A history as clients keep it to turns as the chat template has them: the model knows no tools, and one order only.

The forms, of chat completions and of responses alike:

- a call of a tool is text of the assistant, `Call of NAME: ARGUMENTS`, a line each;
- what a tool returned is text of the user, `Result of NAME: CONTENT`, pictures included;
- a system message behind the first turn is text of the user at its place, as are system messages alone;
- an assistant that speaks first answers an empty turn of the user;
- what the assistant says in several messages is one answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from vl2.errors import UserError
from vl2.process.conversation import ImageRef, Piece, Turn

Role = Literal["system", "user", "assistant"]
Content = str | list[Piece]  # one text, or parts between which the template puts line breaks


def call_text(name: str | None, arguments: object) -> str:
    """Return how a call is written; arguments are JSON already, or any value."""
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f"Call of {name or 'a tool'}: {'' if arguments is None else written}".rstrip()


def result_content(name: str | None, content: Content) -> Content:
    """Return how what a tool returned is written."""
    head = f"Result of {name or 'a tool'}:"
    if isinstance(content, str):
        return f"{head} {content}".rstrip()
    return [f"{head} ", *content]


def order_turns(messages: Iterable[tuple[Role, Content]]) -> list[Turn]:
    """Return turns in the template's order. UserError for a picture that the system or the assistant shows."""
    given = list(messages)
    for index, (role, content) in enumerate(given):
        if role != "user" and any(isinstance(piece, ImageRef) for piece in content):
            raise UserError(f"message {index}: images belong into user messages, not into one of the {role}")
    has_others = any(role != "system" for role, _ in given)
    turns: list[Turn] = []
    for role, content in given:
        pieces = (content,) if isinstance(content, str) else tuple(content)
        before = turns[-1].role if turns else None
        if role == "system" and (before not in (None, "system") or not has_others):
            turns.append(Turn(role="user", pieces=pieces))
        elif role == "assistant" and before == "assistant":
            turns[-1] = replace(turns[-1], pieces=(*turns[-1].pieces, *pieces))
        else:
            if role == "assistant" and before != "user":
                turns.append(Turn(role="user", pieces=()))
            turns.append(Turn(role=role, pieces=pieces))
    return turns
