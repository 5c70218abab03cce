"""The one exception a user is meant to read."""

from __future__ import annotations


class PrunekitError(Exception):
    """Something the user can put right: a missing file, a family that can't be pruned, a target out of reach.

    The message is a whole sentence that says what was wrong, what was expected and what to do. The command line
    prints it without a traceback and exits with code 2.

    >>> raise PrunekitError("There is no method 'flep' (did you mean 'flap'?).")  # doctest: +SKIP
    """
