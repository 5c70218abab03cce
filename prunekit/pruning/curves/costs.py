"""What the steps of drawing loss curves cost beside each other, so that the time left is known from the first layer on.

How many seconds an operation takes is found for each kind by itself; beside each other, kinds are only about right.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.models.sublayers import KINDS
from prunekit.plan.shape import Kind, ModelShape
from prunekit.utils.advance import Advance

SCALE, RULER = "scale", "ruler"
# A product of an elimination, in float64 and a few columns at a time, takes as long as so many of a pass.
_SLOW = 8


@dataclass(frozen=True)
class CurveCosts:
    """Of a model of that shape, in operations: curves on so many ``tokens``, their scale on ``scale_tokens``."""

    shape: ModelShape
    tokens: int
    scale_tokens: int

    def work(self) -> dict[str, float]:
        """All of each kind."""
        indices = range(self.shape.num_hidden_layers)
        eliminations = {str(kind): sum(self.elimination(index, kind) for index in indices) for kind in KINDS}
        return {**eliminations, RULER: self.ruler, SCALE: sum(map(self.scale, indices))}

    def elimination(self, index: int, kind: Kind) -> float:
        """One sub-layer summed up and eliminated: its matrices are [n, n] and [d, n], and shrink by all of n."""
        layer, shape = self.shape.layers[index], self.shape
        ffn = kind == "ffn"
        width = layer.intermediate_size if ffn else layer.num_attention_heads * shape.head_dim
        passed = 2.0 * (shape.ffn_parameters(layer) if ffn else shape.attention_parameters(layer)) + width**2
        return _SLOW * float(width) ** 2 * (width + shape.hidden_size) + self.tokens * passed

    def scale(self, index: int) -> float:
        """Two passes from layer ``index`` on and through the head."""
        behind = sum(map(self.shape.layer_parameters, self.shape.layers[index:]))
        return 2 * 2.0 * self.scale_tokens * (behind + self._head)

    @property
    def ruler(self) -> float:
        """What the scale is measured against: one pass of the dense model."""
        return 2.0 * self.scale_tokens * (self.shape.block_parameters + self._head)

    @property
    def _head(self) -> int:
        return self.shape.vocab_size * self.shape.hidden_size

    def leave_out(self, step: Advance, index: int) -> None:
        """Layer ``index`` has its curves from an earlier run."""
        for kind in KINDS:
            step(0, kind=kind, cost=self.elimination(index, kind), kept=True)
        step(1, kind=SCALE, cost=self.scale(index), kept=True)


def in_layers(step: Advance, advance: Advance) -> Advance:
    """Tells ``step`` what the parts of a layer cost, which is a step once it is whole, and ``advance`` of each part."""

    def told(
        steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False
    ) -> None:
        step(0, kind=kind, cost=cost or 0.0, kept=kept)
        advance(steps)

    return told


def both(step: Advance, advance: Advance) -> Advance:
    """Tells both."""

    def told(
        steps: float = 1, note: str = "", *, kind: str = "", cost: float | None = None, kept: bool = False
    ) -> None:
        step(steps, note, kind=kind, cost=cost, kept=kept)
        advance(steps)

    return told
