"""Named methods: each is a choice of importance, layer importance and allocation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from prunekit.errors import PrunekitError


@dataclass(frozen=True)
class Method:
    """How to choose what goes. ``name`` is the preset it started from, or "custom".

    ``whole_ends`` are the shares of the model's layers at its start and its end that stay whole where no layers are
    named. ``compensate`` puts what removed inputs added on average into biases (FLAP). ``refit`` solves projections
    anew afterwards, ``rescale`` then tunes scales. ``calib`` to ``batch_size`` are the text it takes where none is
    named, and how much of it.
    """

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
    whole_ends: tuple[float, float] = (0.0, 0.0)
    compensate: bool = False
    refit: bool = False
    rescale: bool = False
    calib: str = "builtin"
    sequences: int = 32
    length: int = 64
    batch_size: int = 32

    def whole_layers(self, layers: int) -> frozenset[int]:
        """The layers that stay whole in a model of ``layers``."""
        first, last = (int(share * layers + 0.5) for share in self.whole_ends)
        return frozenset(range(first)) | frozenset(range(layers - last, layers))

    @property
    def rotates(self) -> bool:
        """True for SliceGPT: it narrows hidden states and removes no units, so that there is no plan to make."""
        return self.allocation == "rotate"

    def describe(self) -> dict[str, Any]:
        """The settings that matter for this allocation, for a plan's provenance."""
        if self.rotates:
            return {"name": self.name, "allocation": self.allocation}
        settings = asdict(self)
        for told_elsewhere in ("summary", "refit", "rescale", "calib", "sequences", "length", "batch_size"):
            del settings[told_elsewhere]
        settings["units"] = list(self.units)
        settings["whole_ends"] = list(self.whole_ends)
        if not any(self.whole_ends):
            del settings["whole_ends"]
        if not self.compensate:
            del settings["compensate"]
        if self.allocation != "adapt":
            del settings["steps"], settings["amplitude"]
        if self.allocation not in ("adapt", "uniform"):
            del settings["attention_ratio"]
        if self.allocation != "global":
            del settings["standardise"]
        if self.allocation == "optimal":
            # Units and widths both follow from loss curves.
            del settings["importance"]
        if self.allocation == "drop":
            # Whole layers go: no unit is chosen.
            del settings["importance"], settings["units"]
            settings.pop("compensate", None)
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
        Method(
            "llm-pruner",
            "Taylor units, the same share from every layer but the first and last ones",
            "taylor",
            "uniform",
            # The published scripts prune layers 4 to 29 of LLaMA-7B's 32.
            whole_ends=(4 / 32, 2 / 32),
        ),
        Method(
            "flap",
            "activation fluctuation, z-scores sorted over the model, means of what goes in biases",
            "flap",
            "global",
            standardise=True,
            compensate=True,
        ),
        Method("magnitude", "sum of squared weights, the same share from every layer", "magnitude", "uniform"),
        Method("wanda-sp", "weight times activation norm, the same share from every layer", "wanda", "uniform"),
        Method("minitron", "mean size of activations, the same share from every layer", "activation", "uniform"),
        Method("random", "units by chance, the same share from every layer", "random", "uniform"),
        Method("fisher-global", "gate Fisher a parameter, sorted over the model", "fisher", "global"),
        Method(
            "shortgpt",
            "drops the whole layers that turn their input least",
            "random",
            "drop",
            layer_importance="cosine",
        ),
        Method(
            "prunekit",
            "measured loss curves, widths of least loss, what is left solved anew and rescaled",
            "fisher",
            "optimal",
            layer_importance="cosine",
            units=("ffn", "kv", "query"),
            refit=True,
            rescale=True,
            calib="builtin:0.5,self:0.5",
            sequences=128,
            length=512,
            batch_size=8,
        ),
        Method("slicegpt", "hidden states turned to their principal axes, the least of which go", "random", "rotate"),
    )
}


def method(name: str) -> Method:
    """The preset ``name``. Raises PrunekitError with the names there are."""
    if name not in METHODS:
        raise PrunekitError(f"There is no method {name!r}; choose one of: {', '.join(METHODS)}.")
    return METHODS[name]
