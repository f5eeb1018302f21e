"""English nouns in questions and answers: the article that they take, their plural."""

from __future__ import annotations

import re

# Where the first letter does not tell the sound: "an hourglass", "a unicorn".
_AN = ("hour", "honest", "x-ray")
_A = ("uni", "use", "usb", "uk", "ufo", "utensil", "one", "once", "eu", "ewe")
_SINGULAR_IN_S = re.compile(r"(?:ss|us|is|lens|gas)$", re.IGNORECASE)
_SAME_IN_PLURAL = ("fish", "sheep", "deer", "rice", "bread", "people")
_IRREGULAR = {"man": "men", "woman": "women", "mouse": "mice", "child": "children", "leaf": "leaves", "knife": "knives",
              "tooth": "teeth", "foot": "feet", "wolf": "wolves", "loaf": "loaves"}  # fmt: skip


def article(noun: str) -> str:
    """Return a noun with its indefinite article; a plural stays as it is."""
    if noun.startswith("flag of "):
        return f"the {noun}"
    if is_plural(noun):
        return noun
    lower = noun.lower()
    takes_an = lower.startswith(_AN) or (lower[:1] in tuple("aeiou") and not lower.startswith(_A))
    return f"{'an' if takes_an else 'a'} {noun}"


def is_plural(noun: str) -> bool:
    """Say whether an English noun phrase looks like a plural: "grapes" does, "pair of skis" does not."""
    head = re.split(r" (?:of|with|in|on|at) ", noun)[0].rstrip("!?")
    return head.endswith("s") and not head.endswith("'s") and not _SINGULAR_IN_S.search(head)


def plural(noun: str) -> str:
    """Return the plural of an English noun phrase; of "slice of bread", that of "slice"."""
    if is_plural(noun):
        return noun
    head, of, rest = noun.partition(" of ")
    words = head.split(" ")
    last = words[-1]
    if last in _SAME_IN_PLURAL:
        many = last
    elif last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(("s", "x", "sh", "ch")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return " ".join((*words[:-1], many)) + of + rest
