"""UserError, the exception for everything that a user can cause: bad input, a missing file, a value out of range.

The command line prints its message as one line and exits with 1; the server answers with a 4xx status.
A broken invariant of our own code is an assertion, never a UserError.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """An error that the user can fix. The message is one line: what was wrong, what is allowed, what was given."""


class RankLost(UserError):
    """Another process of this training run has died or hangs.

    Threads of this process may wait for it forever, so the process cannot end by returning from `main`.
    """


def name_hint(name: str, known: Collection[str]) -> str:
    """Return the end of an error message about an unknown name: the closest known name, or else all of them."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"


@contextmanager
def memory_errors(wanted: str) -> Iterator[None]:
    """Turn a failed allocation into a UserError. `wanted` says in the message what the memory was for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch raises OutOfMemoryError on CUDA and a bare RuntimeError on the CPU.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"not enough memory for {wanted}: take a smaller size, type or context") from None
