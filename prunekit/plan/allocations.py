"""The settings of each allocation: what decides how wide every layer becomes. Obeyed in prunekit.pruning.allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunekit.errors import PrunekitError
from prunekit.plan.knobs import knob
from prunekit.plan.settings import EFFORTS, STANDARD

SCORED = ("ffn", "kv", "query")
"""What every allocation of units can prune."""
MEASURED = ("attention-layer", "ffn-layer")
"""What is priced by loss curves alone."""

_STANDARD = EFFORTS[STANDARD]
_ATTENTION_RATIO = "how fast attention shrinks beside the FFNs (1 alike, 0 never)"


@dataclass(frozen=True)
class AllocationConfig:
    """What an allocation of that ``name`` needs: the scores of units, those of layers, or loss curves. ``cuts_units``
    is False where whole layers or hidden channels go, ``uses_up_model`` True where the model is cut on the way."""

    name: ClassVar[str]
    scores_units: ClassVar[bool] = False
    scores_layers: ClassVar[bool] = False
    draws_curves: ClassVar[bool] = False
    cuts_units: ClassVar[bool] = True
    uses_up_model: ClassVar[bool] = False


@dataclass(frozen=True)
class UniformConfig(AllocationConfig):
    """The same share from every layer."""

    name = "uniform"
    scores_units = True

    attention_ratio: float = knob(1.0, _ATTENTION_RATIO)

    def __post_init__(self) -> None:
        _check_attention_ratio(self.attention_ratio)


@dataclass(frozen=True)
class AdaptConfig(AllocationConfig):
    """Adapt-Pruner's: a little from every layer, more where layers turn their input little, then look again."""

    name = "adapt"
    scores_units = scores_layers = uses_up_model = True

    steps: int = knob(50, "T: a step takes 1/T of each layer")
    amplitude: float = knob(0.02, "A: how far layer importance shifts a step")
    attention_ratio: float = knob(1.0, _ATTENTION_RATIO)

    def __post_init__(self) -> None:
        _check_attention_ratio(self.attention_ratio)
        if not 1 <= self.steps <= 10_000:
            raise PrunekitError(f"The number of steps must lie between 1 and 10000, got {self.steps}.")
        if not 0 <= self.amplitude <= 1:
            raise PrunekitError(f"The amplitude must lie between 0 and 1, got {self.amplitude}.")


@dataclass(frozen=True)
class GlobalConfig(AllocationConfig):
    """All units of the model sorted together."""

    name = "global"
    scores_units = True

    standardise: bool = knob(False, "sort z-scores within each layer instead of scores per parameter")


@dataclass(frozen=True)
class OptimalConfig(AllocationConfig):
    """The widths of least loss, by measured curves; units follow from the same curves.

    Curves are drawn on the first ``curve_tokens`` of the text; of more, the rest serves the refit alone. Their metric
    comes from the first ``fisher_tokens``, for a backward pass costs twice a forward one. Their scale is measured on
    ``scale_tokens``: sequences differ much. Of scales from 2,048 tokens a model's widths would lose 2 % more than of
    those from 4,096, and 8,192 would win 1 % (SmolLM2-135M).

    What a sub-layer is worth depends on what the others have lost. So once ``redraw_after`` of what all layers cost has
    gone, curves are drawn again, on the model that is cut so far and refitted, and so on.
    """

    name = "optimal"
    draws_curves = True

    curve_tokens: int = knob(_STANDARD.curve_tokens, "tokens that loss curves are drawn on")
    fisher_tokens: int = knob(_STANDARD.fisher_tokens, "tokens that their metric, the Fisher information, is taken of")
    scale_tokens: int = knob(_STANDARD.scale_tokens, "tokens that their scale is measured on")
    redraw_after: float = knob(
        _STANDARD.redraw_after,
        "loss curves are drawn again whenever such a share of the layers has gone (1: never)",
    )

    def __post_init__(self) -> None:
        if not 0.01 <= self.redraw_after <= 1:
            raise PrunekitError(f"redraw_after must lie between 0.01 and 1, got {self.redraw_after}.")
        for name in ("curve_tokens", "fisher_tokens", "scale_tokens"):
            if not 1 <= getattr(self, name) <= 1 << 30:
                raise PrunekitError(f"{name} must be a whole number of at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class DropConfig(AllocationConfig):
    """Whole layers go."""

    name = "drop"
    scores_layers = True
    cuts_units = False


@dataclass(frozen=True)
class RotateConfig(AllocationConfig):
    """Hidden states are turned and narrowed (SliceGPT); no unit goes, so that there are no widths to plan."""

    name = "rotate"
    cuts_units = False


ALLOCATIONS: dict[str, type[AllocationConfig]] = {
    config.name: config
    for config in (UniformConfig, AdaptConfig, GlobalConfig, OptimalConfig, DropConfig, RotateConfig)
}


def check_unit_names(units: tuple[str, ...]) -> None:
    """Raises PrunekitError where ``units`` names nothing, or what no allocation can prune."""
    if set(units) - {*SCORED, *MEASURED} or not units:
        raise PrunekitError(
            f"units takes {', '.join((*SCORED, *MEASURED))}, separated by commas; got {','.join(units)!r}."
        )


def check_units(allocation: str, units: tuple[str, ...]) -> None:
    """Raises PrunekitError where the ``allocation`` of that name has no price for one of ``units``."""
    priceless = [unit for unit in units if unit in MEASURED]
    if priceless and not (allocation in ALLOCATIONS and ALLOCATIONS[allocation].draws_curves):
        raise PrunekitError(
            f"{priceless[0]} is decided by measured loss curves, which the allocation {allocation} has none of; set "
            f"allocation={OptimalConfig.name} (the default method's), or leave {priceless[0]} out of units."
        )


def _check_attention_ratio(value: float) -> None:
    if not 0 <= value <= 10:
        raise PrunekitError(f"The attention ratio must lie between 0 and 10, got {value}.")
