"""Lines of fields, as `told.py` writes them: `Town: Ulm | Height: 478 m`. Where in them an answer stands."""

from __future__ import annotations

import re
from itertools import pairwise

AFTER_NAME, BETWEEN = ": ", " | "
NUMBER = re.compile(r"[$€£]?\d(?:[\d.,]*\d)?%?")
MARK = re.compile("|".join(map(re.escape, (AFTER_NAME, BETWEEN))))

Place = tuple[int, int]  # the number of a text's first character, and of the one after its last


def fields_of(told: str, question: str, answer: str) -> tuple[list[Place], list[Place]]:
    """Return where in a text of lines and fields an answer stands, and the fields of its line on which it rests.

    The first is a list of one, or of several where a question does not tell which. The second are the fields that the
    question names, and the values of those and of the answer.
    """
    lines = [line.span() for line in re.finditer(r"[^\n]+", told)]
    fields = list[Place]()
    for start, end in lines:
        marks = (edge for mark in MARK.finditer(told, start, end) for edge in mark.span())
        edges = (start, *marks, end)
        fields.extend(zip(edges[::2], edges[1::2], strict=True))
    value_of = {name: value for name, value in pairwise(fields) if told[name[1] : value[0]] == AFTER_NAME}
    named = [place for place in fields if _is_named(told[slice(*place)], question)]
    read = [place for place in fields if told[slice(*place)] == answer] or occurrences(answer, told)
    if len(read) > 1:
        num_named = [sum(_lies_in(place, line) for place in named) for line in lines]
        meant = [line for line, num in zip(lines, num_named, strict=True) if num == max(num_named)]
        read = [place for place in read if any(_lies_in(place, line) for line in meant)]
    beside = [line for line in lines if len(read) == 1 and _lies_in(read[0], line)]
    rests_on = {*named, *(value_of[name] for name in (*named, *read) if name in value_of)}
    return read, sorted(
        place for place in rests_on if place not in read and any(_lies_in(place, line) for line in beside)
    )


def compared_in(question: str, answer: str) -> tuple[list[Place], list[Place]]:
    """Return where in a question with a list its answer stands, and the number of that: itself, or the one after it.

    Lists are "478, 143" or "Ulm 478, Jena 143".
    """
    read = occurrences(answer, question)
    if len(read) != 1:
        return read, []
    if NUMBER.fullmatch(answer):
        return read, read
    end = read[0][1]
    number = NUMBER.match(question, end + 1) if question[end : end + 1] == " " else None
    return read, [number.span()] if number else []


def occurrences(text: str, within: str) -> list[Place]:
    """Return where a text stands in another."""
    return [(found.start(), found.start() + len(text)) for found in re.finditer(f"(?={re.escape(text)})", within)]


def _is_named(field: str, question: str) -> bool:
    """Tell whether a question has a field as words of its own; between Chinese characters there are no marks."""
    edge = "" if any("\u4e00" <= char <= "\u9fff" for char in field) else r"\w"
    before, after = (f"(?<!{edge})", f"(?!{edge})") if edge else ("", "")
    return re.search(before + re.escape(field) + after, question) is not None


def _lies_in(inner: Place, outer: Place) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
