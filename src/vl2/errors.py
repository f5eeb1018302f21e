"""The one exception for what a person can cause: bad input, a missing file, a setting out of range.

The command line prints its message as one line and exits with 1; a server answers with a 4xx.
Our own broken invariants are assertions, never this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Say in one line what was wrong, what is allowed and what was given."""


class RankLost(UserError):
    """Say that another process of this run has died or hangs. Threads of this one may wait for it for ever."""


@contextmanager
def memory_errors(wanted: str) -> Iterator[None]:
    """Turn a failed allocation into a UserError that says what there was no memory for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # PyTorch raises OutOfMemoryError on CUDA and a bare RuntimeError on the CPU.
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(f"not enough memory for {wanted}: take a smaller size, type or context") from None
