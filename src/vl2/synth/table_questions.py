"""Make questions about a table with computed answers: lookup, maximum, minimum, comparison, difference, count, sum."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from decimal import Decimal

from vl2.synth.tables import Table, write_number

Cell = tuple[int, int]  # row (0 is the header) and column


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question and its answer."""

    kind: str
    question: str
    answer: str
    cells: tuple[tuple[str, Cell], ...] = ()  # texts in the question or the answer, with their cells in the table


TEXTS = {
    "en": {
        "lookup": ('What is the value of "{column}" for {row}?', '{row}: what does "{column}" say?'),
        "max": ('Which {key} has the highest value of "{column}"?', 'Where is "{column}" largest?'),
        "min": ('Which {key} has the lowest value of "{column}"?', 'Where is "{column}" smallest?'),
        "compare": ('Which has the higher value of "{column}", {row} or {other}?',),
        "difference": ('By how much do {row} and {other} differ in "{column}"?',),
        "count": (
            'How many entries have a value of "{column}" above {limit}?',
            'For how many is "{column}" over {limit}?',
        ),
        "sum": ('What is the sum of "{column}" over all entries?', 'Add up all values of "{column}".'),
        "rows": ("How many rows does the table have, without the header?", "Count the rows below the header."),
    },
    "zh": {
        "lookup": ("{row}的“{column}”是多少？", "{row}一行的“{column}”是什么？"),
        "max": ("“{column}”最大的是哪一个？", "哪一项的“{column}”最高？"),
        "min": ("“{column}”最小的是哪一个？", "哪一项的“{column}”最低？"),
        "compare": ("{row}和{other}相比，哪一个的“{column}”更大？",),
        "difference": ("{row}和{other}的“{column}”相差多少？",),
        "count": ("有多少项的“{column}”大于{limit}？",),
        "sum": ("“{column}”的总和是多少？",),
        "rows": ("除表头外，表格有多少行？",),
    },
}


def ask_lookup(table: Table, rng: random.Random) -> Asked | None:
    """Ask for the content of a random cell that is not empty. Return None if there is no such cell."""
    filled = [(r, c) for r, row in enumerate(table.rows) for c in range(1, len(row)) if row[c]]
    if not filled:
        return None
    r, c = rng.choice(filled)
    row, column = table.rows[r][0], table.header[c]
    asked = _asked("lookup", table, rng, table.rows[r][c], column=column, row=row)
    return replace(asked, cells=((row, (r + 1, 0)), (column, (0, c)), (table.rows[r][c], (r + 1, c))))


def ask_rows(table: Table, rng: random.Random) -> Asked:
    return _asked("rows", table, rng, str(len(table.rows)))


def ask_number(table: Table, rng: random.Random, kind: str, column: int | None = None) -> Asked | None:
    """Ask about a column of numbers: the given one, or a random one.

    Return None if the table has no such column, or if the question has no single right answer.
    """
    columns = table.numeric_columns if column is None else [column]
    if not columns:
        return None
    at = rng.choice(columns)
    values, names, title = table.numbers(at), table.column(0), table.header[at]
    assert values is not None, f"column {title!r} is not numeric"
    if kind in ("max", "min"):
        best = max(values) if kind == "max" else min(values)
        if values.count(best) > 1:
            return None
        best_row = values.index(best)
        asked = _asked(kind, table, rng, names[best_row], column=title, key=_key(table))
        return replace(asked, cells=((title, (0, at)), (names[best_row], (best_row + 1, 0))))
    if kind in ("compare", "difference"):
        return _ask_pair(kind, table, rng, values, title)
    if kind == "count":
        limit = rng.choice(values)
        count = sum(value > limit for value in values)
        return _asked(kind, table, rng, str(count), column=title, limit=write_number(limit))
    assert kind == "sum", kind
    if _are_years(values):
        return None
    return _asked(kind, table, rng, write_number(sum(values, Decimal(0))), column=title)


def _key(table: Table) -> str:
    """Return the name of the first column as a word for a question; "row" if its header is not a single word."""
    return table.header[0].lower() if table.header[0].isalpha() else "row"


def _are_years(values: list[Decimal]) -> bool:
    return all(1500 <= value <= 2100 and value == value.to_integral_value() for value in values)


def _ask_pair(kind: str, table: Table, rng: random.Random, values: list[Decimal], title: str) -> Asked | None:
    names = table.column(0)
    first, second = rng.sample(range(len(names)), 2)
    if values[first] == values[second]:
        return None
    higher = names[first] if values[first] > values[second] else names[second]
    answer = higher if kind == "compare" else write_number(abs(values[first] - values[second]))
    return _asked(kind, table, rng, answer, column=title, row=names[first], other=names[second])


def _asked(kind: str, table: Table, rng: random.Random, answer: str, **names: str) -> Asked:
    question = rng.choice(TEXTS[table.language][kind]).format(**names)
    return Asked(kind=kind, question=question, answer=answer)
