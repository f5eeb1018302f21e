"""The values of an extracted object, each with its path, and how a number may be printed on a page."""

from __future__ import annotations

from collections.abc import Iterator


def leaves(value: object, path: str = "") -> Iterator[tuple[str, str | float]]:
    """Yield (path, value) of the numbers and the texts that are not empty; a path is like "items/0/price"."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from leaves(inside, f"{path}/{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            yield from leaves(inside, f"{path}/{number}" if path else str(number))
    elif isinstance(value, str):
        if value.strip():
            yield path, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def printed_forms(value: str | float) -> list[str]:
    """Return the texts that may stand on a page for a value, the likeliest first: 1234.5 as 1,234.50, 1234.5 ..."""
    if isinstance(value, str):
        return [" ".join(value.split())]
    forms = [f"{value:,.2f}", f"{value:.2f}"] if value != int(value) else [f"{int(value):,}", str(int(value))]
    swapped = [form.translate(str.maketrans(",.", ".,")) for form in forms]
    more = [f"{value:.2f}", f"{value:,.2f}"] if value == int(value) else [repr(value)]
    return list(dict.fromkeys([*forms, *more, *swapped]))
