"""Named methods: each is a choice of importance, layer importance and allocation, and of what follows the cut."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.allocations import (
    AdaptConfig,
    AllocationConfig,
    DropConfig,
    GlobalConfig,
    OptimalConfig,
    RotateConfig,
    UniformConfig,
    check_unit_names,
    check_units,
)
from prunekit.plan.knobs import knob, turned
from prunekit.plan.settings import EFFORTS, MUCH_TEXT, STANDARD, CalibrationConfig, RefitConfig, RescaleConfig, effort
from prunekit.plan.training import LOOPS
from prunekit.utils.names import nearest


@dataclass(frozen=True)
class Method:
    """How to choose what goes, with all its settings. ``name`` is the preset's; ``custom`` says that what chooses units
    and widths is no longer the preset's own.

    ``whole_ends`` are the shares of the model's layers at its start and its end that stay whole where no layers are
    named. ``compensate`` puts what removed inputs added on average into biases (FLAP). ``refit`` solves projections
    anew afterwards, ``rescale`` then tunes scales. ``calibration`` is the text it takes, and how much of it. ``effort``
    is where its dial stands (prunekit.plan.settings.EFFORTS), None where it has none.
    """

    name: str
    summary: str
    importance: str = knob("random", "how much a unit matters")
    allocation: AllocationConfig = field(default_factory=UniformConfig)
    layer_importance: str | None = knob(None, "how much a layer matters")
    units: tuple[str, ...] = knob(("ffn", "kv"), "what may go")
    whole_ends: tuple[float, float] = (0.0, 0.0)
    compensate: bool = knob(False, "put what removed inputs added on average into biases")
    refit: RefitConfig | None = None
    rescale: RescaleConfig | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    effort: str | None = knob(None, "how much time the default method may take; sets several others")
    custom: bool = False

    def __post_init__(self) -> None:
        if self.effort is not None:
            effort(self.effort)
        check_unit_names(self.units)
        check_units(self.allocation.name, self.units)
        if self.allocation.scores_layers and self.layer_importance is None:
            raise PrunekitError(f"The allocation {self.allocation.name!r} needs a layer importance; name one.")
        if self.rescale is not None and self.refit is None:
            raise PrunekitError("rescale tunes what a refit has solved, but nothing is refitted; set refit=true too.")

    @property
    def label(self) -> str:
        """Its name in plans and tables."""
        return f"custom (from {self.name})" if self.custom else self.name

    @property
    def rotates(self) -> bool:
        """True for SliceGPT: it narrows hidden states and removes no units, so that there is no plan to make."""
        return isinstance(self.allocation, RotateConfig)

    @property
    def compensates(self) -> bool:
        """Whether biases make good for what goes. A refit does that better than a constant can."""
        return self.compensate and self.allocation.cuts_units and self.refit is None

    def whole_layers(self, layers: int) -> frozenset[int]:
        """The layers that stay whole in a model of ``layers``."""
        first, last = (int(share * layers + 0.5) for share in self.whole_ends)
        return frozenset(range(first)) | frozenset(range(layers - last, layers))

    def at(self, name: str) -> Method:
        """The same with its dial at the effort ``name``. Raises PrunekitError where there is none of that name."""
        told = asdict(effort(name))
        allocation, calibration = turned(self.allocation, told), turned(self.calibration, told)
        rescale = (self.rescale or RescaleConfig()) if told["rescale"] else None
        return replace(self, effort=name, allocation=allocation, calibration=calibration, rescale=rescale)

    def describe(self) -> dict[str, Any]:
        """What chose units and widths, for a plan's provenance."""
        kind = self.allocation
        if self.rotates:
            return {"name": self.label, "allocation": kind.name}
        return {
            "name": self.label,
            **({} if self.effort is None else {"effort": self.effort}),
            **({"importance": self.importance} if kind.scores_units else {}),
            "allocation": kind.name,
            **({"layer_importance": self.layer_importance} if kind.scores_layers else {}),
            **({"units": list(self.units)} if kind.cuts_units else {}),
            **asdict(kind),
            **({"whole_ends": list(self.whole_ends)} if any(self.whole_ends) else {}),
            **({"compensate": True} if self.compensate and kind.cuts_units else {}),
        }


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "adapt-pruner",
            "Taylor units, cosine layers, progressive allocation (the paper's)",
            "taylor",
            AdaptConfig(),
            layer_importance="cosine",
        ),
        Method(
            "llm-pruner",
            "Taylor units, the same share from every layer but the first and last ones",
            "taylor",
            # The published scripts prune layers 4 to 29 of LLaMA-7B's 32.
            whole_ends=(4 / 32, 2 / 32),
        ),
        Method(
            "flap",
            "activation fluctuation, z-scores sorted over the model, means of what goes in biases",
            "flap",
            GlobalConfig(standardise=True),
            compensate=True,
        ),
        Method("magnitude", "sum of squared weights, the same share from every layer", "magnitude"),
        Method("wanda-sp", "weight times activation norm, the same share from every layer", "wanda"),
        Method("minitron", "mean size of activations, the same share from every layer", "activation"),
        Method("random", "units by chance, the same share from every layer", "random"),
        Method("fisher-global", "gate Fisher a parameter, sorted over the model", "fisher", GlobalConfig()),
        Method(
            "shortgpt",
            "drops the whole layers that turn their input least",
            allocation=DropConfig(),
            layer_importance="cosine",
        ),
        Method(
            "prunekit",
            "measured loss curves, widths of least loss, what is left solved anew and rescaled",
            "fisher",
            OptimalConfig(),
            layer_importance="cosine",
            units=("ffn", "kv", "query"),
            refit=RefitConfig(),
            rescale=RescaleConfig(),
            calibration=replace(MUCH_TEXT, source=EFFORTS[STANDARD].calib),
            effort=STANDARD,
        ),
        Method(
            "slicegpt",
            "hidden states turned to their principal axes, the least of which go",
            allocation=RotateConfig(),
        ),
    )
}


def method(name: str) -> Method:
    """The preset ``name``. Raises PrunekitError with the names there are."""
    if name in LOOPS:
        raise PrunekitError(
            f"{name} prunes and trains in turns: prunekit prune --method {name} --recover --tokens 50M. Its cuts alone "
            f"are those of {LOOPS[name].method}."
        )
    if name not in METHODS:
        raise PrunekitError(
            f"There is no method {name!r}{nearest(name, METHODS)}; choose one of: {', '.join(METHODS)}."
        )
    return METHODS[name]
