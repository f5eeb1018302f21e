"""The usual ways to ask: pictures first, then the question, with or without an instruction about the answer's form."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

from vl2.datasets.question_answers import OPTION_LETTER, SHORT_ANSWER
from vl2.eval.task import Item
from vl2.process.conversation import Turn, user_turn

Ask = Callable[[Item], list[Turn]]


def ask(item: Item) -> list[Turn]:
    """Ask the bare question."""
    return [user_turn(item.question, item.images)]


def ask_with(suffix: str, *, is_stripped: bool = True) -> Ask:
    """Return what asks the question with an instruction after it; some harnesses keep blanks at its ends."""
    return lambda item: [user_turn((item.question.strip() if is_stripped else item.question) + suffix, item.images)]


ask_short = ask_with(f"\n{SHORT_ANSWER}")
ask_short_as_is = ask_with(f"\n{SHORT_ANSWER}", is_stripped=False)


def lettered(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))


def letters(item: Item) -> dict[str, str]:
    """Return the options by their letters."""
    return dict(zip(string.ascii_uppercase, item.options, strict=False))


def ask_letter(item: Item) -> list[Turn]:
    """Ask for the letter of an option; a question without options for a short answer."""
    if not item.options:
        return ask_short(item)
    return [user_turn(f"{item.question.strip()}\n{lettered(item.options)}\n{OPTION_LETTER}", item.images)]
