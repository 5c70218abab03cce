"""Sentences that candidates say: how a model was made, what was not measured, what to do about what fell back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunekit.data.sources import BUILTIN
from prunekit.pipeline.candidates.asked import Format
from prunekit.pipeline.candidates.overlap import MUCH, same_file
from prunekit.plan import Plan


def shared_text(text: str, calib: str, seen: float) -> str | None:
    """What to say where quality is measured on text that was calibrated on: the same file, or a share ``seen`` of
    it."""
    if same_file(text, calib):
        what = "is the calibration text too"
    elif seen > MUCH:
        what = f"is in the calibration text too ({seen:.0%} of it)"
    else:
        return None
    return (
        f"The text that quality is measured on {what}, so quality looks better than it is; give other text of the same "
        "kind with --eval."
    )


def not_measured(
    text: str, shared: str | None, format_: Format | None, missing: str | None, has_table: bool
) -> tuple[str, ...]:
    """What the figures leave open. ``shared`` is the word on shared text, ``missing`` says why nothing could be
    exported in ``format_``."""
    told = [] if shared is None else [shared]
    if text == BUILTIN:
        told.append("Your own text: quality is that on built-in prose. Give text of your work with --eval.")
    told.append("Recovery training: quality is that before it. It brings a pruned model nearer to the dense one.")
    if format_ is not None and missing is not None:
        told.append(f"Sizes and quality in {format_.text}: {missing}")
    elif format_ is not None and format_.rounds:
        told.append(
            f"The runtime of {format_.target.name}: quality is computed by PyTorch with the weights of the file, and "
            "the runtime rounds activations too. prunekit export compares the two."
        )
    how = "tables predict its ratios" if has_table else "its ratios are ideal ones"
    told.append(f"Latency: {how}. Use prunekit bench on what you choose.")
    told.append("Activations and the runtime's own memory: memory and users count weights and KV cache alone.")
    return tuple(told)


def how_made(plan: Plan) -> str:
    """What was done to a model that ``plan`` prunes."""
    recipe = plan.read_recipe()
    done = ["pruned"]
    if recipe is not None and recipe.refit is not None and plan.cuts:
        done += ["refitted", *(["rescaled"] if recipe.rescale is not None else [])]
    elif plan.added_biases:
        done.append("compensated by biases")
    return f"{', '.join(done)} in memory, before recovery training"


def advice(fallbacks: Mapping[str, int] | None, loss: float | None) -> str | None:
    """What to do about tensors that fell back because of pruned widths; ``loss`` is what the curves say that costs."""
    if fallbacks is None or not fallbacks["of_pruned_widths"]:
        return None
    cost = "" if loss is None else f" By the loss curves that costs {loss:+.4f} nats a token (predicted, before refit)."
    return (
        f"{fallbacks['tensors']} tensors are stored in larger types, because their rows don't fill blocks of 256. "
        f"{fallbacks['of_pruned_widths']} of these, with widths that pruning chose, cost "
        f"{fallbacks['of_pruned_widths_bytes']:,} bytes. --round-for gguf keeps to widths that fill blocks, at "
        f"the same number of parameters.{cost}"
    )


def why(plan: Plan | None) -> tuple[str, ...]:
    """Of the reasons for the widths of ``plan`` those that say most: the layer where one unit less would cost most, the
    one that is cut deepest, and the one where one more would help most. Empty where no loss curves decided."""
    layers = ((plan.provenance.get("why") or {}) if plan is not None else {}).get("layers", [])
    parts = [(layer, layer[kind]) for layer in layers for kind in ("ffn", "attention") if kind in layer]
    told: dict[int, str] = {}
    for title, value in (("dearest to cut", _dearest), ("cut deepest", _depth), ("next to be widened", _worth)):
        most, layer = None, None
        for each, part in parts:
            found = value(part)
            if found is not None and (most is None or found > most):
                most, layer = found, each
        if layer is not None:
            told.setdefault(layer["index"], f"layer {layer['index']} ({title}): {layer['words']}")
    return tuple(told.values())


def _dearest(part: Mapping[str, Any]) -> float | None:
    return part.get("narrower")


def _worth(part: Mapping[str, Any]) -> float | None:
    return part.get("wider")


def _depth(part: Mapping[str, Any]) -> float | None:
    """The share that is gone; None where nothing is."""
    kept, dense = (math.prod(size) if isinstance(size, list) else size for size in (part["kept"], part["dense"]))
    return 1 - kept / dense if kept < dense else None
