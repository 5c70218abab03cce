"""Refit of a plan: what `prunekit prune` does between the plan and the rebuild, where the plan asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError
from prunekit.plan_text import text_of
from prunekit.progress import progress
from prunekit.refit import RefitConfig, Refitted, refit
from prunekit.source import load_model

if TYPE_CHECKING:
    from prunekit.plan import Plan
    from prunekit.source import Source


def refit_config(plan: Plan) -> RefitConfig | None:
    """The refit that ``plan`` asks for, None where it asks for none. Raises PrunekitError where it makes no sense."""
    said = plan.provenance.get("refit")
    if said is None:
        return None
    try:
        return RefitConfig(**said)
    except TypeError:
        raise PrunekitError(f"The plan's refit settings {said!r} are damaged; make the plan again.") from None


def refit_plan(
    source: Source,
    plan: Plan,
    text: str | None = None,
    *,
    batch_size: int = 8,
    dtype: str = "auto",
    device: str = "auto",
) -> Refitted:
    """Solve what ``plan`` leaves of ``source`` anew on the calibration text that the plan was made with.

    ``text`` says where it is, if it was a file: plans don't hold paths. Raises PrunekitError where it is another text,
    or where something is not finite.
    """
    config = refit_config(plan)
    assert config is not None, "the plan asks for no refit"
    calibration = text_of(source, plan, text, "projections are refitted on", batch_size=batch_size, device=device)
    model = load_model(source, dtype=dtype, device=device)
    with progress("Refitting", 2 * plan.source.num_hidden_layers) as advance:
        return refit(
            model,
            source.family,
            plan.source,
            plan.layers,
            calibration.input_ids,
            config,
            batch_size=batch_size,
            advance=advance,
        )
