"""Opens and runs an export of unknown origin, for a parent that has set limits. Prints ``{"error": ...}``, null where
the export runs.

    python -m prunekit.export.trial_child '[folder, seen, batch, tokens]'
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.export.export import read_export
from prunekit.utils.files.listed_folder import Seen
from prunekit.utils.timing import prompt_ids


def run_export(folder: str, seen: Seen, batch: int, tokens: int) -> str | None:
    """What is wrong with the export in ``folder``, in a sentence; None where it answers ``batch`` prompts."""
    opened = replace(read_export(Path(folder)), seen={name: tuple(facts) for name, facts in seen.items()})
    try:
        with opened.open() as runner:
            batch = min(batch, runner.max_batch or batch)
            runner.greedy(prompt_ids(batch, max(1, tokens - 1), runner.vocab_size, seed=0).numpy(), 2)
    except PrunekitError as error:
        return str(error)
    return None


if __name__ == "__main__":
    said = run_export(*json.loads(sys.argv[1]))
    sys.stdout.write(json.dumps({"error": said}) + "\n")
