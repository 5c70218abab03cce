"""The calibration text that a plan was made with, read again by what still has to be computed on it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prunekit.data.mixture import CalibrationText, calibration_text
from prunekit.data.sources import SELF
from prunekit.errors import PrunekitError
from prunekit.models.source import load_tokenizer

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel
    from prunekit.plan import Plan
    from prunekit.plan.recipe import Recipe


def text_of(
    dense: DenseModel, plan: Plan, recipe: Recipe, what_for: str, *, given: str | None = None
) -> CalibrationText:
    """The calibration text of ``plan``, made by ``recipe``, token for token. Only what the model writes itself may be
    another text, for it is one on another kind of machine (:func:`told`).

    ``given`` says where it is, if it was a file: plans don't hold paths. ``what_for`` ends the sentence "the plan's …".
    Raises PrunekitError where it is missing or another text.
    """
    advice = f"the plan's {what_for} {recipe.calibration.source}, so give that text with --calib"
    try:
        config = replace(recipe.calibration, source=given or recipe.calibration.source)
        made = calibration_text(config, load_tokenizer(dense.source), dense)
    except PrunekitError as error:
        raise PrunekitError(f"{str(error).rstrip('.')}; {advice}.") from None
    if _read(made.describe()) != _read(plan.provenance.get("calibration") or {}):
        raise PrunekitError(f"The calibration text is another one: {advice}.")
    return made


def told(plan: Plan, made: CalibrationText) -> Plan:
    """``plan``, which names the text it is ``computed_on`` where :func:`text_of` gave another than its own."""
    if made.fingerprint == plan.provenance["calibration"].get("fingerprint"):
        return plan
    return replace(plan, provenance={**plan.provenance, "computed_on": made.describe()})


def _read(described: dict[str, Any]) -> list[Any]:
    """The fingerprints of all parts that the model has not written itself, in their order."""
    mix = described.get("mix")
    parts = mix if isinstance(mix, list) else [described]
    return [SELF if part.get("source") == SELF else part.get("fingerprint") for part in parts if isinstance(part, dict)]
