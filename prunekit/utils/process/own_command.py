"""Whether this process is the command's, in which models are registered only when one is loaded."""

from __future__ import annotations

import sys
from pathlib import Path


def is_command() -> bool:
    """True in the process of the ``prunekit`` command, which registers when it loads a model.

    Registering imports torch and nine families' modelling, which `prunekit --help` need not wait for.
    """
    if sys.argv and Path(sys.argv[0]).name in ("prunekit", "prunekit.exe"):
        return True
    # `python -m prunekit` imports this file before argv[0] is the path of __main__.
    asked = sys.orig_argv
    return "-m" in asked and asked[asked.index("-m") + 1 :][:1] == ["prunekit"]
