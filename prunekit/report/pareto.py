"""The picture of several candidates: file size against the loss that each adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit.report.pictures import no_formula, own_style, save_figure, single_axis

# Marker and colour of each kind: told apart by shape too, for who does not see colours.
_KINDS = {
    "dense": ("s", "#333a45", "dense"),
    "prune": ("o", "#2f6fb3", "pruned"),
    "quantise": ("D", "#7a8594", "quantised"),
    "both": ("^", "#d9822b", "pruned and quantised"),
}
_FRONT = "#9aa3ae"


@dataclass(frozen=True)
class Point:
    """A candidate called ``name`` of that ``kind`` (dense, prune, quantise, both): MiB of its file, nats a token that
    it adds, with the ends of the interval where there is one, and whether it is on the front."""

    name: str
    kind: str
    mebibytes: float
    loss: float
    low: float | None
    high: float | None
    is_best: bool


@own_style()
def draw_pareto(points: Sequence[Point], title: str, path: Path, overwrite: bool = False) -> None:
    """Every point with its interval, and a line through the front. Written atomically."""
    figure, axis = single_axis("file size, MiB")
    figure.set_size_inches(7.6, 4.2)
    best = sorted((each.mebibytes, each.loss) for each in points if each.is_best)
    if len(best) > 1:
        axis.step(*zip(*best, strict=True), where="post", color=_FRONT, linewidth=1.0, zorder=1)
    told = set()
    for each in points:
        marker, color, label = _KINDS[each.kind]
        low, high = (each.loss if end is None else end for end in (each.low, each.high))
        axis.errorbar(
            each.mebibytes,
            each.loss,
            yerr=[[max(0.0, each.loss - low)], [max(0.0, high - each.loss)]],
            fmt=marker,
            color=color,
            markerfacecolor=color if each.is_best else "white",
            capsize=3,
            label=None if label in told else label,
            zorder=2,
        )
        told.add(label)
        # The marker tells what the format's name would.
        label = no_formula(each.name.split(" ")[0])
        axis.annotate(label, (each.mebibytes, each.loss), xytext=(6, 5), textcoords="offset points", size=8)
    axis.set_ylabel("loss added, nats a token")
    axis.set_title(f"{no_formula(title)}\nfilled: on the Pareto front; bars: 95 % intervals", loc="left", size=9)
    if told:
        # Above the axes: inside them it would lie on points.
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    axis.margins(x=0.12, y=0.15)
    save_figure(figure, path, overwrite)
