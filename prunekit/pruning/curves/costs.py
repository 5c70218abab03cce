"""What the steps of drawing loss curves cost beside each other, so that the time left is known from the first layer on.

Only steps of one kind are compared by these: how many seconds a unit takes is found for each kind by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.models.sublayers import KINDS
from prunekit.plan.shape import Kind, ModelShape
from prunekit.utils.advance import Advance

SCALE = "scale"


@dataclass(frozen=True)
class CurveCosts:
    """Of a model of that shape."""

    shape: ModelShape

    def work(self) -> dict[str, float]:
        """All of each kind."""
        indices = range(self.shape.num_hidden_layers)
        eliminations = {str(kind): sum(self.elimination(index, kind) for index in indices) for kind in KINDS}
        return {**eliminations, SCALE: sum(map(self.scale, indices))}

    def elimination(self, index: int, kind: Kind) -> float:
        """One sub-layer summed up and eliminated: its matrices are [n, n] and [d, n], and shrink by all of n."""
        layer = self.shape.layers[index]
        width = layer.intermediate_size if kind == "ffn" else layer.num_attention_heads * self.shape.head_dim
        return float(width) ** 2 * (width + self.shape.hidden_size)

    def scale(self, index: int) -> float:
        """Two passes from layer ``index`` on and through the head, in layers' worth of products."""
        return 2 * (self.shape.num_hidden_layers - index + self.head)

    @property
    def head(self) -> float:
        """The head, in layers' worth of products."""
        mean = self.shape.block_parameters / self.shape.num_hidden_layers
        return self.shape.vocab_size * self.shape.hidden_size / max(1.0, mean)

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
