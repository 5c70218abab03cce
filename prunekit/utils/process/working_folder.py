"""Takes the working folder off the path of imports where Python put it there for a command of ours.

``python -m prunekit`` may be run in a stranger's folder, which could hold ``json.py``. The first file that Python reads
there can't be helped: a folder ``prunekit/``. Imports nothing that could be found there.
"""

from __future__ import annotations

import os
import sys

_HOME = os.path.abspath(__file__)
for _ in range(4):
    _HOME = os.path.dirname(_HOME)


def leave_working_folder() -> None:
    """Where this process is ``python -m prunekit`` (or a module of it) or the command itself, remove from sys.path the
    working folder and what relative entries of PYTHONPATH named, but never where prunekit itself lies."""
    asked = sys.orig_argv[1:]
    module = asked[asked.index("-m") + 1 :][:1] if "-m" in asked else []
    by_module = bool(module) and module[0].split(".")[0] == "prunekit"
    if not by_module and os.path.basename(sys.argv[0] if sys.argv else "") not in ("prunekit", "prunekit.exe"):
        return
    try:
        working = os.getcwd()
    except OSError:
        return
    if by_module and not getattr(sys.flags, "safe_path", False):
        _remove(working)
    for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "PYTHONPATH" in os.environ else ():
        if not os.path.isabs(entry):
            _remove(os.path.normpath(os.path.join(working, entry)))


def _remove(folder: str) -> None:
    for name in (folder, os.path.realpath(folder)):
        if name in sys.path and os.path.realpath(name) != os.path.realpath(_HOME):
            sys.path.remove(name)
