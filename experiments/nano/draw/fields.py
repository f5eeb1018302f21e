"""Lines of fields, as `told.py` writes them: `Town: Ulm | Height: 478 m`. Where in them an answer stands."""

from __future__ import annotations

import re
from itertools import pairwise

from experiments.nano.draw.extremes import NUMBER, parts_of

AFTER_NAME, BETWEEN = ": ", " | "
MARK = re.compile("|".join(map(re.escape, (AFTER_NAME, BETWEEN))))

Place = tuple[int, int]  # the number of a text's first character, and of the one after its last


def fields_of(told: str, question: str, answer: str) -> tuple[list[Place], list[Place]]:
    """Return where in a text of lines and fields an answer stands, and the fields of its line on which it rests.

    The first is a list of one, or of several where a question does not tell which; of a number and whose it is, the
    places of both, or none. The second are the fields that the question names, and the values of those and of the
    answer, such a number among them.
    """
    *number, name = parts_of(answer)
    lines = [line.span() for line in re.finditer(r"[^\n]+", told)]
    fields = list[Place]()
    for start, end in lines:
        marks = (edge for mark in MARK.finditer(told, start, end) for edge in mark.span())
        edges = (start, *marks, end)
        fields.extend(zip(edges[::2], edges[1::2], strict=True))
    value_of = {field: value for field, value in pairwise(fields) if told[field[1] : value[0]] == AFTER_NAME}
    named = [place for place in fields if _is_named(told[slice(*place)], question)]
    read = [place for place in fields if told[slice(*place)] == name] or occurrences(name, told)
    if len(read) > 1:
        num_named = [sum(_lies_in(place, line) for place in named) for line in lines]
        meant = [line for line, num in zip(lines, num_named, strict=True) if num == max(num_named)]
        read = [place for place in read if any(_lies_in(place, line) for line in meant)]
    beside = [line for line in lines if len(read) == 1 and _lies_in(read[0], line)]
    valued = {value_of[field] for field in (*named, *read) if field in value_of}
    rests_on = sorted(
        place for place in {*named, *valued} if place not in read and any(_lies_in(place, line) for line in beside)
    )
    if number:
        first = [place for place in rests_on if told[slice(*place)] == number[0]][:1]
        read = [*first, *read] if first else []
    return read, rests_on


def compared_in(question: str, answer: str) -> tuple[list[Place], list[Place]]:
    """Return where in a question an answer stands, and the number that had to be found for it, if it is of a list.

    Lists are "478, 143" or "Ulm 478, Jena 143"; of the second kind the answer is a number and whose it is, and has
    two places.
    """
    first, *name = parts_of(answer)
    read = occurrences(f"{name[0]} {first}" if name else answer, question)
    if not NUMBER.fullmatch(first):
        return read, []
    if len(read) != 1:
        return [], []
    ((start, end),) = read
    at = (end - len(first), end)
    found = NUMBER.match(question, at[0])
    if found is None or found.span() != at:
        return [], []
    return [at, *((start, start + len(part)) for part in name)], [at]


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
