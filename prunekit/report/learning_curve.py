"""How a training went: its rows, and their picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from prunekit.report.pictures import FFN, HEADS, own_style, save_figure, single_axis

ROWS, PICTURE = "recovery.jsonl", "recovery.png"
# Steps that the shown divergence is averaged over, as a share of all.
_SMOOTH = 1 / 40


def save_curve(
    folder: Path, steps: Sequence[Mapping[str, float]], held_out: Sequence[Mapping[str, float]], used: int
) -> None:
    """Write recovery.jsonl and recovery.png into ``folder``. ``steps`` have "step", "kl", "loss" and "rate" each,
    ``held_out`` "step" and "kl", and "stage" where there were several; ``used`` is the step whose weights were
    taken."""
    rows = [*steps, *({"held_out": dict(row)} for row in held_out)]
    (folder / ROWS).write_text("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows), encoding="utf-8")
    draw_curve(steps, held_out, used, folder / PICTURE)


@own_style()
def draw_curve(
    steps: Sequence[Mapping[str, float]], held_out: Sequence[Mapping[str, float]], used: int, path: Path
) -> None:
    """The divergence of every step's text, averaged over a few, and of the held-out text. A line stands where a stage
    ends and more is cut. Written atomically."""
    figure, axis = single_axis("step")
    known = [(row["step"], row["kl"]) for row in steps if row["kl"] is not None]
    window = max(1, round(len(known) * _SMOOTH))
    means = [
        (step, sum(kl for _, kl in known[max(0, place - window + 1) : place + 1]) / min(window, place + 1))
        for place, (step, _) in enumerate(known)
    ]
    if means:
        axis.plot(*zip(*means, strict=True), color=FFN, linewidth=1, label="text that is trained on")
    axis.plot(
        [row["step"] for row in held_out],
        [row["kl"] for row in held_out],
        color=HEADS,
        marker="o",
        label="held-out text",
    )
    for before, row in pairwise(held_out):
        if row.get("stage") != before.get("stage"):
            axis.axvline(row["step"], color="0.7", linewidth=1, zorder=0)
    # Of a step between two stages, what is measured after the cut.
    chosen = next((row for row in reversed(held_out) if row["step"] == used), None)
    if chosen is not None:
        axis.annotate(
            "written", (chosen["step"], chosen["kl"]), textcoords="offset points", xytext=(0, -16), ha="center"
        )
    axis.set_ylim(bottom=0)
    axis.set_ylabel("KL, nats a token")
    axis.legend(frameon=False)
    axis.set_title("Recovery training: divergence from the dense model", loc="left")
    save_figure(figure, path, overwrite=False)
