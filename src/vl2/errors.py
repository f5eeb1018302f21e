"""The one exception for what a person can cause: bad input, a missing file, a setting out of range.

The command line prints its message as one line and exits with 1; a server answers with a 4xx.
Our own broken invariants are assertions, never this.
"""


class UserError(Exception):
    """Say in one line what was wrong, what is allowed and what was given."""
