"""A benchmark's report as a JSON file that is saved row by row: a run that was cut short goes on where it was."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Report = dict[str, Any]


def begun(path: Path | None, kind: str, asked: Report, device: str = "auto") -> Report:
    """The report so far, or a new one without runs. A file of other settings is refused: its rows could not be compared
    with new ones."""
    from prunekit.models.source import pick_device
    from prunekit.utils.machine import describe_machine
    from prunekit.utils.provenance import versions

    if path and path.exists():
        report: Report = json.loads(path.read_text(encoding="utf-8"))
        if report.get("asked") != asked:
            sys.exit(f"{path} was made with other settings: {report.get('asked')}. Choose another --output.")
        return report
    machine = describe_machine(pick_device(device))
    return {"format": f"prunekit-{kind}", "asked": asked, "machine": machine, "versions": versions(), "runs": []}


def save(path: Path | None, report: Report) -> None:
    """Atomically, with a rename, where there is a ``path``."""
    from prunekit.utils.files.atomic import rewrite_text

    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rewrite_text(path, json.dumps(report, indent=1) + "\n")
