"""How a training is told while it goes on: in lines of words on stderr, and as JSON on stdout where asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import note
from prunekit.cli.tables.recovery import estimate_line, row_lines

if TYPE_CHECKING:
    from prunekit.recovery.training.progress import Estimate, Listener


def say(values: dict[str, Any]) -> None:
    """One JSON object on a line of its own."""
    print(json.dumps(values, allow_nan=False), flush=True)  # noqa: T201


def training_listener(as_json: bool) -> Listener:
    """What a training tells."""
    from prunekit.recovery.training.progress import Listener

    def estimated(estimate: Estimate) -> None:
        if as_json:
            say({"estimate": estimate.to_dict()})
        note(estimate_line(estimate))

    def row(values: dict[str, Any]) -> None:
        if as_json:
            say(values)
            return
        for line in row_lines(values):
            note(line)

    return Listener(row=row, note=note, estimate=estimated)
