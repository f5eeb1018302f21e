"""Form the indefinite article and the plural of English nouns for questions and answers."""

from __future__ import annotations

import re

# Beginnings of words whose first letter does not agree with the sound: "an hourglass", "a unicorn".
_AN = ("hour", "honest", "x-ray")
_A = ("uni", "use", "usb", "uk", "ufo", "utensil", "one", "once", "eu", "ewe")
_SINGULAR_IN_S = re.compile(r"(?:ss|us|is|lens|gas|rhinoceros)$", re.IGNORECASE)
# The noun that is counted stands before these words; after them comes what it has or where it is.
_BEHIND = re.compile(r" (?:of|with|without|at|on|in|over|behind|showing|tilted|fluttering) ")
_SAME_IN_PLURAL = ("fish", "jellyfish", "blowfish", "sheep", "deer", "moose", "bison", "shrimp", "squid", "people")
# Mass nouns, which have neither an article nor a plural.
_MASS = (
    "rice", "bread", "spaghetti", "bacon", "broccoli", "garlic", "sushi", "sake", "butter", "salt", "soap", "luggage",
    "yarn", "thread", "wood", "ice", "fog", "coral", "popcorn", "meat",
)  # fmt: skip
_IRREGULAR = {"man": "men", "woman": "women", "snowman": "snowmen", "mouse": "mice", "goose": "geese", "ox": "oxen",
              "child": "children", "leaf": "leaves", "sheaf": "sheaves", "scarf": "scarves", "knife": "knives",
              "tooth": "teeth", "foot": "feet", "wolf": "wolves", "loaf": "loaves", "die": "dice", "potato": "potatoes",
              "tomato": "tomatoes", "volcano": "volcanoes", "mosquito": "mosquitoes", "tornado": "tornadoes",
              "buffalo": "buffaloes"}  # fmt: skip


def article(noun: str) -> str:
    """Return a noun with its indefinite article. Plurals and mass nouns get none, and "flag of ..." gets "the"."""
    if noun.startswith("flag of "):
        return f"the {noun}"
    if is_plural(noun) or is_mass(noun):
        return noun
    lower = noun.lower()
    takes_an = lower.startswith(_AN) or (lower[:1] in tuple("aeiou") and not lower.startswith(_A))
    return f"{'an' if takes_an else 'a'} {noun}"


def is_plural(noun: str) -> bool:
    """Return whether an English noun phrase looks like a plural, as "grapes" does, but not "pair of skis"."""
    head = _BEHIND.split(noun)[0].rstrip("!?")
    return head.endswith("s") and not head.endswith("'s") and not _SINGULAR_IN_S.search(head)


def is_mass(noun: str) -> bool:
    """Return whether an English noun phrase is a mass noun, such as "curry rice"."""
    return _BEHIND.split(noun)[0].split(" ")[-1] in _MASS


def plural(noun: str) -> str:
    """Return the plural of an English noun phrase, such as "slices of bread" and "nuts and bolts"."""
    if is_plural(noun):
        return noun
    behind = _BEHIND.search(noun)
    head, rest = (noun[: behind.start()], noun[behind.start() :]) if behind else (noun, "")
    return " and ".join(map(_plural_of_last, head.split(" and "))) + rest


def _plural_of_last(phrase: str) -> str:
    words = phrase.split(" ")
    last = words[-1]
    if last in _SAME_IN_PLURAL or is_mass(last) or is_plural(last):
        many = last
    elif last in _IRREGULAR:
        many = _IRREGULAR[last]
    elif last.endswith(("s", "x", "sh", "ch")):
        many = f"{last}es"
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        many = f"{last[:-1]}ies"
    else:
        many = f"{last}s"
    return " ".join((*words[:-1], many))
