"""What is kept for the tests of the built-in model: training leaves it out, the tests of held_out take nothing else.

Every rule is that of `vl2.eval.held_out`, by which the package's own tasks go too: one in five by a hash. Converters
of NLVR and SROIE know nothing of it: whoever makes training records of them asks here.
"""

from __future__ import annotations

from vl2.eval.held_out import is_held_out


def is_test_scene(group: int | str) -> bool:
    """Tell whether a group of NLVR (its column `group`) is the tests'."""
    return is_held_out("nlvr", str(group))


def is_test_shop(company: str) -> bool:
    """Tell whether a shop of SROIE (its column `company`; the id of a receipt without one) is the tests'."""
    return is_held_out("sroie", company)


def is_test_photo(id: str) -> bool:
    """Tell whether a photograph, by its id or the name of its file, is the tests'."""
    return is_held_out("photo", id)


def is_test_word(word: str) -> bool:
    """Tell whether a word may name things in the tests' tables, charts and lines, and in none that training draws.

    It is asked of one word, of any case. Running text may hold it.
    """
    return is_held_out("word", word)
