"""What `prunekit prune` does between the plan and the rebuild, where the plan asks for it: refit, then rescaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.models.source import load_model
from prunekit.recovery.refit import RefitConfig, Refitted, layer_weights, refit
from prunekit.recovery.rescale import RescaleConfig, final_hidden, rescale
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    import torch

    from prunekit.data.calibration import Calibration
    from prunekit.data.mixture import Mixed
    from prunekit.models.source import Source
    from prunekit.plan import Plan

# What refits of earlier versions had, and what says nothing where `_check_dropped` finds nothing.
_DROPPED = ("inputs", "held_out")


def refit_config(plan: Plan) -> RefitConfig | None:
    """The refit that ``plan`` asks for, None where it asks for none. Raises PrunekitError where it makes no sense."""
    said = plan.provenance.get("refit")
    if said is not None:
        _check_dropped(said)
        said = {name: value for name, value in said.items() if name not in _DROPPED}
    made: RefitConfig | None = _config("refit", said, RefitConfig)
    return made


def rescale_config(plan: Plan) -> RescaleConfig | None:
    """The rescaling that ``plan`` asks for, None where it asks for none. Raises PrunekitError where it makes no
    sense, as without a refit."""
    made: RescaleConfig | None = _config("rescale", plan.provenance.get("rescale"), RescaleConfig)
    if made is not None and refit_config(plan) is None:
        raise PrunekitError("The plan's refit settings are damaged: it rescales without a refit; make the plan again.")
    return made


def _check_dropped(said: dict[str, Any]) -> None:
    """Raises PrunekitError where the settings of an earlier version's refit ask for what is done no more."""
    asked = None
    if said.get("inputs"):
        asked = f"fits input projections too (--refit-inputs {said['inputs']})"
    elif said.get("ridge", 0) is None:
        asked = "chooses a ridge for every projection (--ridge auto)"
    if asked:
        raise PrunekitError(
            f"The plan's refit {asked}, which this version of prunekit can't do; make the plan again without that, or "
            "apply it with the version that made it."
        )


def _config(name: str, said: dict[str, Any] | None, kind: Any) -> Any:
    if said is None:
        return None
    try:
        return kind(**said)
    except TypeError:
        raise PrunekitError(f"The plan's {name} settings {said!r} are damaged; make the plan again.") from None


def refit_plan(
    source: Source,
    plan: Plan,
    calibration: Calibration | Mixed,
    *,
    batch_size: int = 8,
    dtype: str = "auto",
    device: str = "auto",
) -> Refitted:
    """Solve what ``plan`` leaves of ``source`` anew on the ``calibration`` text that the plan was made with
    (:func:`prunekit.data.from_plan.text_of`), and tune its scales on a part of that text which the refit did not see,
    where the plan says so.

    Where ``dtype`` is left to be chosen, CPUs made for it may compute products in bfloat16. Raises PrunekitError where
    something is not finite.
    """
    config, scales = refit_config(plan), rescale_config(plan)
    assert config is not None, "the plan asks for no refit"
    ids = calibration.input_ids
    model: Any = load_model(source, dtype=dtype, device=device)
    fast = dtype == "auto"

    def solve(text: torch.Tensor) -> Refitted:
        with progress("Refitting", 2 * plan.source.num_hidden_layers) as advance:
            return refit(
                model,
                source.family,
                plan.source,
                plan.layers,
                text,
                config,
                batch_size=batch_size,
                fast=fast,
                advance=advance,
            )

    if scales is None:
        return solve(ids)
    ids, kept_back = scales.split(ids, calibration.written)
    # While the model is still the dense one.
    wanted = final_hidden(model, kept_back, scales.batch_size, fast)
    made = solve(ids)
    seed = plan.provenance.get("seed")
    with progress("Rescaling", scales.steps(len(kept_back))) as advance:
        made.rescaled = rescale(
            model,
            kept_back,
            wanted,
            scales,
            seed=seed if isinstance(seed, int) else 0,
            fast=fast,
            advance=advance,
        )
    made.weights = layer_weights(model, plan.layers)
    return made
