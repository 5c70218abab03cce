"""Whether a target can be met at all, known from shapes alone, before a model is loaded."""

from __future__ import annotations

from prunekit.errors import PrunekitError
from prunekit.rounding import Rounding
from prunekit.shape import ModelShape


def check_protected(source: ModelShape, protected: frozenset[int]) -> None:
    """Raises PrunekitError where a layer is to be protected that the model does not have."""
    beyond = sorted(index for index in protected if index < 0 or index >= source.num_hidden_layers)
    if beyond:
        raise PrunekitError(
            f"Layer {beyond[0]} can't be protected: the model has layers 0 to {source.num_hidden_layers - 1}."
        )


def check_reachable(
    source: ModelShape,
    budget: int,
    rounding: Rounding,
    units: tuple[str, ...],
    protected: frozenset[int],
    counted: ModelShape | None = None,
) -> None:
    """Raises PrunekitError, saying what is possible, where not even the floors fit the budget. ``counted`` is
    ``source`` with the biases that the pruned model will have."""
    check_protected(source, protected)
    smallest = rounding.floor(counted or source, units, protected)
    if smallest.parameters > budget:
        raise PrunekitError(
            f"The target of {budget:,} parameters is out of reach: embeddings take {source.embedding_parameters:,}, "
            f"and with these floors, multiples and protected layers the smallest possible is {smallest.parameters:,} "
            f"(--params {_up(smallest.parameters / source.parameters)}, "
            f"--blocks {_up(smallest.block_parameters / source.block_parameters)}). Ask for at least that, or lower "
            "--ffn-multiple and --min-ffn, protect fewer layers, or prune more kinds of unit."
        )


def _up(share: float) -> str:
    """A share rounded up at the fourth digit, so that asking for it succeeds."""
    return f"{min(int(share * 10_000) + 1, 9_999) / 10_000:.4f}"
