"""Pictures: per-layer widths of a plan, per-layer importance of an analysis."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.utils.files.atomic import check_output_file, write_bytes
from prunekit.utils.files.replacing import PICTURE_MARK
from prunekit.utils.names import printable

_DENSE, FFN, HEADS = "#d9dde3", "#2f6fb3", "#d9822b"
# Dots an inch of pictures that are not drawn as lines.
_DPI = 150
_METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": PICTURE_MARK},
    "svg": {"Creator": PICTURE_MARK, "Date": None},
    "pdf": {"Creator": PICTURE_MARK, "CreationDate": None},
}


@contextmanager
def own_style() -> Iterator[None]:
    """matplotlib's settings as they come with it: a matplotlibrc of the working folder may have text set by TeX."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def _figure(rows: int, layers: int):  # type: ignore[no-untyped-def]
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        rows,
        1,
        figsize=(max(6.0, min(0.28 * layers + 2, 18)), 2.6 * rows),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes[:, 0]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3, linewidth=0.6)
        axis.set_axisbelow(True)
    axes[-1, 0].set_xlabel("layer")
    return figure, axes[:, 0]


def single_axis(what: str):  # type: ignore[no-untyped-def]
    """A figure with one axis, along which ``what`` is counted."""
    figure, (axis,) = _figure(1, 20)
    axis.set_xlabel(what)
    return figure, axis


def check_picture(path: Path, overwrite: bool = False, inputs: Iterable[Path] = ()) -> str:
    """The format that the ending of ``path`` names. Raises PrunekitError where it names none, or can't be written:
    with ``overwrite``, a picture that prunekit drew may be replaced."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise PrunekitError(f"A picture can be written as .png, .svg or .pdf, not {path.name!r}.")
    check_output_file(path, overwrite, what="picture", inputs=inputs)
    return kind


def check_different(output: Path, picture: Path) -> None:
    """Raises PrunekitError where both have the same name."""
    if os.path.realpath(output) == os.path.realpath(picture):
        raise PrunekitError(f"{output} can't hold both the result and its picture; give --picture another name.")


def save_figure(figure, path: Path, overwrite: bool) -> None:  # type: ignore[no-untyped-def]
    """Write it in the format that the ending of ``path`` names, atomically."""
    import matplotlib
    from matplotlib import pyplot

    kind = check_picture(path, overwrite)
    buffer = io.BytesIO()
    # No date inside, and no random names of an SVG's parts: the same plan gives the same file. The mark lets a later
    # run know that it may be replaced.
    with matplotlib.rc_context({"svg.hashsalt": "prunekit"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=_METADATA[kind])
    pyplot.close(figure)
    write_bytes(path, buffer.getvalue(), overwrite, what="picture")


@own_style()
def draw_widths(plan: Plan, path: Path, overwrite: bool = False) -> None:
    """FFN width and heads of every layer, kept in front of dense; dropped layers are empty. Where the plan says why,
    also what one unit of the budget less would cost at each layer. Written atomically."""
    save_figure(widths_figure(plan), path, overwrite)


def widths_figure(plan: Plan, colours: tuple[str, str, str] = (_DENSE, FFN, HEADS)):  # type: ignore[no-untyped-def]
    """The figure that :func:`draw_widths` writes, in ``colours`` of what was there, FFN and heads."""
    before, ffn, heads = colours
    source = plan.source
    kept = {layer.index: layer.shape for layer in plan.layers}
    layers = range(source.num_hidden_layers)
    why = plan.provenance.get("why")
    figure, (top, bottom, *prices) = _figure(3 if why else 2, source.num_hidden_layers)
    top.bar(layers, [layer.intermediate_size for layer in source.layers], color=before, label="dense")
    top.bar(layers, [kept[i].intermediate_size if i in kept else 0 for i in layers], color=ffn, label="kept")
    top.set_ylabel("FFN width")
    # Above the axes: inside them it would lie on the bars.
    top.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
    top.set_title(
        f"{plan.share_of_blocks:.1%} of the decoder blocks, {plan.share_of_parameters:.1%} of all parameters",
        loc="left",
    )
    bottom.bar(layers, [layer.num_attention_heads for layer in source.layers], color=before)
    bottom.bar(layers, [kept[i].num_attention_heads if i in kept else 0 for i in layers], color=heads)
    bottom.set_ylabel("query heads")
    if why:
        _draw_prices(prices[0], why, ffn, heads)
    return figure


def _draw_prices(axis, why: Mapping[str, Any], ffn: str, heads: str) -> None:  # type: ignore[no-untyped-def]
    """What one unit of the budget less costs at each sub-layer, and what one more would save where it helps most."""
    import matplotlib
    from matplotlib.ticker import LogLocator, NullFormatter

    # A logarithm: what is cheapest and what is dearest to cut differ by a hundred times, and both are to be seen.
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
    for kind, colour, mark, label in (("ffn", ffn, "o", "FFN"), ("attention", heads, "s", "attention")):
        prices = [(layer.get("index"), layer.get(kind, {}).get("narrower")) for layer in why.get("layers", [])]
        shown = [(index, 1e3 * price) for index, price in prices if price is not None and price > 0]
        if shown:
            axis.plot(*zip(*shown, strict=True), mark, color=colour, markersize=4, label=label)
    if (shadow := why.get("shadow_price")) is not None and shadow > 0:
        axis.axhline(
            1e3 * shadow,
            color=matplotlib.rcParams["axes.edgecolor"],
            linewidth=0.9,
            linestyle="--",
            label="one more, at best",
        )
    axis.set_ylabel(f"mnats a token\nfor one {no_formula(str(why.get('unit')))} less", fontsize="small")
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)


def no_formula(text: str) -> str:
    """A name that a file or a user gave, as matplotlib draws it: no formula, whatever dollars it holds."""
    return printable(text).replace("$", r"\$")


def _limit(values: Sequence[float]) -> float | None:
    """How high an axis goes where some of ``values`` are more than four times the median; None where none is."""
    middle = sorted(map(abs, values))[len(values) // 2]
    common = [value for value in values if value <= 4 * middle]
    return 1.25 * max(common) if common and len(common) < len(values) and max(common) > 0 else None


@own_style()
def draw_importance(importance: Sequence[float], method: str, path: Path, overwrite: bool = False) -> None:
    """One bar a layer, taller matters more. What is far above the rest is cut short, with its value beside it, so that
    it doesn't hide them. Written atomically."""
    figure, (axis,) = _figure(1, len(importance))
    axis.bar(range(len(importance)), importance, color=FFN)
    limit = _limit(importance)
    if limit is not None:
        axis.set_ylim(top=limit)
        for index, value in enumerate(importance):
            if value > limit:
                words = {"ha": "center", "va": "top", "rotation": 90, "color": "white", "fontsize": "small"}
                axis.text(index, 0.97 * limit, f"{value:.3g} \u2191", **words)
    axis.set_ylabel(f"importance ({method})")
    axis.set_title("What each layer changes", loc="left")
    save_figure(figure, path, overwrite)
