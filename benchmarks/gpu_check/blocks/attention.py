"""Into how many splits should the attention of one sequence be cut here?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gpu_check.blocks.tiles import brief, label
from benchmarks.gpu_check.work import Context, Measurement
from prunekit.kernels.tuning.cases import cases

__all__ = ["brief", "measurements"]
NEEDS_CEILINGS = False
OP = "attention_splits"


def measurements(context: Context) -> Iterator[Measurement]:
    """Layers of a decode step at each context."""
    layers = [replace(layer, context=tokens) for tokens in context.sizes.contexts for layer in context.sizes.layers]
    for each in cases(OP, (), (), layers):
        yield Measurement(
            label(OP, each),
            {"op": OP, "sizes": each},
            lambda each=each: {"entry": context.chosen(OP, each, layers)},
            needs_s=3.0,
        )
