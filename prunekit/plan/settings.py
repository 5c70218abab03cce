"""How text is read and how projections are solved: settings that plans record. Obeyed in prunekit.data and
prunekit.recovery."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.knobs import knob
from prunekit.utils.names import nearest


@dataclass(frozen=True)
class Effort:
    """How much text the default method takes, and how closely it measures what widths would cost. Each field is a
    setting of the same name, which ``--set`` turns by itself."""

    sequences: int
    length: int
    calib: str
    curve_tokens: int
    fisher_tokens: int
    scale_tokens: int
    redraw_after: float
    rescale: bool = True


# Of little text, a refit makes more than rescaling, and short sequences are written sooner. Curves that are drawn again
# would more than double the time of `quick` at half of the blocks. `builtin` holds 40,000 tokens, fewer of large
# vocabularies: 64 sequences are taken of it at most, and what is wanted more the model writes.
EFFORTS: dict[str, Effort] = {
    "quick": Effort(64, 256, "builtin:0.5,self:0.5", 8192, 4096, 1024, 1.0, rescale=False),
    "standard": Effort(160, 512, "builtin:0.4,self:0.6", 16384, 8192, 2048, 0.2),
    "best": Effort(512, 512, "builtin:0.125,self:0.875", 32768, 16384, 4096, 0.2),
}
STANDARD = "standard"


def effort(name: str) -> Effort:
    """The settings of that effort. Raises PrunekitError with the names there are."""
    if name not in EFFORTS:
        raise PrunekitError(
            f"There is no effort {name!r}{nearest(name, EFFORTS)}; choose one of: {', '.join(EFFORTS)}."
        )
    return EFFORTS[name]


@dataclass(frozen=True)
class CalibrationConfig:
    """What text to calibrate on: ``sequences`` blocks of ``length`` tokens, drawn from all of ``source`` by ``seed``.

    ``source`` is a file of text or rows (:func:`prunekit.data.sources.pieces`), a Hugging Face dataset (``id`` or
    ``id:config``), ``wikitext`` or ``builtin``. ``field`` names the field or column of the rows that holds the text or
    chat, ``split`` the dataset's. Where ``group`` names the one that says what group a row belongs to, rows of a group
    are put together, and each sequence is of the group that most of its tokens come from.
    """

    source: str = knob("builtin", "a file, a Hugging Face dataset, wikitext, builtin, self, or a mix", name="calib")
    sequences: int = knob(32, "sequences a scoring pass")
    length: int = knob(64, "tokens a sequence")
    batch_size: int = knob(32, "sequences a forward pass: lower it where memory is short")
    seed: int = 0
    field: str = knob("text", "the field or column of the rows that holds the text or the chat", name="calib_field")
    split: str = knob("train", "the dataset's split", name="calib_split")
    group: str | None = knob(
        None, "the field or column of the rows that names a row's group, to be told apart in why", name="calib_group"
    )
    gradient_checkpointing: bool | None = knob(
        None, "recompute activations instead of keeping them, where scores need gradients (where memory is short)"
    )

    def __post_init__(self) -> None:
        check_text(self, "calibration", {"sequences": 1, "length": 2, "batch_size": 1})
        if self.group is not None and (not isinstance(self.group, str) or not self.group):
            raise PrunekitError(f"The field of a text's groups must be named, got {self.group!r}.")


def check_text(config: Any, use: str, least: Mapping[str, int]) -> None:
    """Raises PrunekitError unless the fields that ``least`` names are whole numbers of at least so much, and the seed,
    source, field and split of a text for that ``use`` make sense."""
    for name, lowest in {**least, "seed": 0}.items():
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise PrunekitError(
                f"{name.replace('_', ' ').capitalize()} must be a whole number of at least {lowest}, got {value!r}."
            )
    if config.seed >= 1 << 63:
        raise PrunekitError(f"Seed must be below 2^63, which is what PyTorch takes, got {config.seed}.")
    for name in ("source", "field", "split"):
        if not isinstance(getattr(config, name), str) or not getattr(config, name):
            raise PrunekitError(f"The {use} text's {name} must be named, got {getattr(config, name)!r}.")


MUCH_TEXT = CalibrationConfig(sequences=EFFORTS[STANDARD].sequences, length=EFFORTS[STANDARD].length, batch_size=8)
"""What least squares and loss curves need; scores are content with less."""


@dataclass(frozen=True)
class RefitConfig:
    """How projections are solved anew.

    ``towards`` says what the output projections should give: at 0 what the dense layer makes of the pruned model's
    inputs, at 1 what brings the residual stream back to the dense model's, in between a blend. ``ridge`` holds
    projections to their old weights, as a share of the inputs' mean square. Defaults are those of least perplexity on
    other text (SmolLM2-135M).
    """

    towards: float = knob(
        0.5, "the refit aims at what the dense layer gives (0), at the dense residual stream (1)", name="refit_towards"
    )
    ridge: float = knob(1e-1, "how strongly refitted weights are held to their old values")

    def __post_init__(self) -> None:
        if not 0 <= self.towards <= 1:
            raise PrunekitError(f"A refit's `towards` must lie between 0 and 1, got {self.towards}.")
        if not 0 < self.ridge <= 1e3:
            raise PrunekitError(f"ridge must lie above 0 and at most at 1000, got {self.ridge}.")


@dataclass(frozen=True)
class RescaleConfig:
    """``share`` of the calibration text is kept from the refit and serves the factors: on text that projections were
    solved on, their errors are not what they are elsewhere. None: 0.4, and at most two thirds of what the model has not
    written itself. A refit has enough of 50,000 tokens or so, factors gain from several times as many (SmolLM2-135M).
    ``rate`` is Adam's step at its largest, after a tenth of the steps; it falls to 0 in a cosine. ``batch_size``
    sequences make one step, and every sequence is seen once. ``held_out`` of the sequences make no step: factors that
    don't bring the model closer on them are not used.
    """

    share: float | None = knob(None, "the share of the text that is kept for rescaling", name="rescale_share")
    rate: float = knob(5e-3, "Adam's step at its largest", name="rescale_rate")
    batch_size: int = knob(4, "sequences a step of rescaling", name="rescale_batch_size")
    held_out: float = knob(1 / 16, "the share of rescaling's text that judges it", name="rescale_held_out")

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise PrunekitError(f"A rescaling's `share` must lie above 0 and below 1, got {self.share}.")
        if not 0 < self.rate <= 0.1:
            raise PrunekitError(f"The rate of rescaling must lie above 0 and at most at 0.1, got {self.rate}.")
        if self.batch_size < 1:
            raise PrunekitError(f"A step of rescaling takes at least 1 sequence, got {self.batch_size}.")
        if not 0 < self.held_out < 1:
            raise PrunekitError(f"The held-out share must lie above 0 and below 1, got {self.held_out}.")

    def held(self, sequences: int) -> int:
        """How many of ``sequences`` are held out."""
        return max(1, round(sequences * self.held_out))

    def steps(self, sequences: int) -> int:
        """Steps on ``sequences``, those that are held out left out."""
        return math.ceil((sequences - self.held(sequences)) / self.batch_size)

    def check(self, sequences: int) -> None:
        """Raises PrunekitError where ``sequences`` are too few to be split between refit and rescaling."""
        if sequences < 3:
            raise PrunekitError(
                f"Refit and rescaling need 3 sequences at least, got {sequences}; raise the setting sequences, or "
                "set rescale=false."
            )
