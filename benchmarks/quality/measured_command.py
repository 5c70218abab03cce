"""A prunekit command in a process of its own, and what it took."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any

from benchmarks.common.spent import Spent, run_measured
from prunekit.utils.process.child import environment, python_command


def measured(arguments: Sequence[object], more: Mapping[str, str] | None = None) -> tuple[Any, Spent]:
    """What a prunekit command prints as JSON, and what it took; ``more`` is added to its environment.

    Raises subprocess.CalledProcessError, with what it said on stderr, where it fails.
    """
    command = [*map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as out:
        code, said, spent = timed(command, out, more)
        if code:
            raise subprocess.CalledProcessError(code, command, stderr=said)
        out.seek(0)
        text = out.read()
    return json.loads(text[text.index("{") :]), spent


def timed(arguments: Sequence[str], out: IO[str], more: Mapping[str, str] | None = None) -> tuple[int, str, Spent]:
    """Run `prunekit` with ``arguments``, which prints to ``out``: how it ended, what it said on stderr, and what it
    took."""
    command = python_command(module="prunekit", arguments=[*arguments])
    with tempfile.TemporaryFile("w+") as said:
        code, spent = run_measured(command, out=out, error=said, env={**environment(), **(more or {})})
        said.seek(0)
        return code, said.read(), spent
