"""Named methods: each is a choice of importance, layer importance and allocation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunekit.errors import PrunekitError


@dataclass(frozen=True)
class Method:
    """How to choose what goes. ``name`` is the preset it started from, or "custom"."""

    name: str
    summary: str
    importance: str
    allocation: str
    layer_importance: str | None = None
    units: tuple[str, ...] = ("ffn", "kv")
    steps: int = 50
    amplitude: float = 0.02
    attention_ratio: float = 1.0
    standardise: bool = False

    def describe(self) -> dict[str, Any]:
        """The settings that matter for this allocation, for a plan's provenance."""
        settings = asdict(self)
        settings.pop("summary")
        settings["units"] = list(self.units)
        if self.allocation != "adapt":
            del settings["steps"], settings["amplitude"]
        if self.allocation not in ("adapt", "uniform"):
            del settings["attention_ratio"]
        if self.allocation != "global":
            del settings["standardise"]
        if self.allocation == "drop":
            # Whole layers go: no unit is chosen.
            del settings["importance"], settings["units"]
        if self.allocation not in ("adapt", "drop"):
            del settings["layer_importance"]
        return settings


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "adapt-pruner",
            "Taylor units, cosine layers, progressive allocation (the paper's)",
            "taylor",
            "adapt",
            layer_importance="cosine",
        ),
        Method("llm-pruner", "Taylor units, the same share from every layer", "taylor", "uniform"),
        Method("flap", "activation fluctuation, z-scores sorted over the model", "flap", "global", standardise=True),
        Method("magnitude", "sum of squared weights, the same share from every layer", "magnitude", "uniform"),
        Method("wanda-sp", "weight times activation norm, the same share from every layer", "wanda", "uniform"),
        Method("fisher-global", "gate Fisher a parameter, sorted over the model", "fisher", "global"),
        Method(
            "shortgpt",
            "drops the whole layers that turn their input least",
            "random",
            "drop",
            layer_importance="cosine",
        ),
    )
}


def method(name: str) -> Method:
    """The preset ``name``. Raises PrunekitError with the names there are."""
    if name not in METHODS:
        raise PrunekitError(f"There is no method {name!r}; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]
