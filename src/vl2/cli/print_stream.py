"""An answer on stdout while it is generated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def print_stream(pieces: Iterable[str]) -> None:
    """Print an answer as it comes, and a newline: in all what `print(reply.text)` would print."""
    for piece in strip_stream(pieces):
        print(piece, end="", flush=True)
    print(flush=True)


def strip_stream(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the pieces of a text without its leading and trailing blanks."""
    held = ""  # blanks that may turn out to be the last
    has_begun = False
    for piece in pieces:
        text = held + piece
        kept = text.rstrip()
        held = text[len(kept) :]
        kept = kept if has_begun else kept.lstrip()
        if kept:
            has_begun = True
            yield kept
        elif not has_begun:
            held = ""
