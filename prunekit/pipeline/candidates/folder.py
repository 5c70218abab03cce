"""The folder of candidates: figures as JSON, a plan and its picture for each size, a picture of all."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from prunekit.pipeline.candidates.result import Candidates
from prunekit.report.pareto import Point, draw_pareto
from prunekit.report.pictures import draw_widths
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.replacing import CANDIDATES

RESULT, PICTURE = "candidates.json", "pareto.png"


def write_folder(made: Candidates, out: Path, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Write ``out`` atomically. Raises PrunekitError where that fails."""
    with new_folder(out, overwrite, kind=CANDIDATES, inputs=inputs) as folder:
        for row in made.rows:
            if row.plan is not None and row.plan_file is not None and not (folder / row.plan_file).exists():
                row.plan.save(folder / row.plan_file)
                draw_widths(row.plan, folder / Path(row.plan_file).with_suffix(".png"))
        text = json.dumps(made.to_dict(), indent=1, allow_nan=False)
        (folder / RESULT).write_text(text + "\n", encoding="utf-8")
        draw_pareto(_points(made), f"{made.model['name']} on {made.evaluation['source']}", folder / PICTURE)
        manifest = {"format": CANDIDATES.format, "version": 1, "files": digests(folder)}
        (folder / CANDIDATES.manifest).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def _points(made: Candidates) -> list[Point]:
    """The rows whose size and quality are both known."""
    points = []
    for row in made.rows:
        size, loss = row.figures["file_bytes"], row.figures["loss_added"]
        value = loss.to_dict()["value"]
        if size.value is not None and value is not None:
            points.append(Point(row.name, row.kind, size.value / 2**20, value, loss.low, loss.high, row.pareto))
    return points
