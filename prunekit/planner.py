"""From a model, text, a method and a target to a Plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prunekit.allocation import Problem, allocation
from prunekit.allocation.drop import check_droppable
from prunekit.allocation.reach import check_protected, check_reachable
from prunekit.calibration import CalibrationConfig, check_length, check_tokens, load_calibration
from prunekit.errors import PrunekitError
from prunekit.importance.base import importance, layer_importance
from prunekit.methods import METHODS, Method
from prunekit.plan import Plan
from prunekit.progress import progress
from prunekit.provenance import model_label, versions
from prunekit.rounding import Rounding
from prunekit.session import Session
from prunekit.source import load_model, load_tokenizer, pick_dtype
from prunekit.targets import Target

if TYPE_CHECKING:
    from prunekit.source import Source


@dataclass(frozen=True)
class PlanConfig:
    """Everything that decides a plan, apart from the model. ``checkpoint`` turns gradient checkpointing on or off
    (None: as the free memory asks for). ``store_dtype`` is what the weights will be stored in (auto: as they are),
    which a target in bytes is counted in."""

    target: Target
    method: Method = METHODS["adapt-pruner"]
    rounding: Rounding = field(default_factory=Rounding)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    protected: frozenset[int] = frozenset()
    seed: int = 0
    dtype: str = "auto"
    store_dtype: str = "auto"
    device: str = "auto"
    checkpoint: bool | None = None


def make_plan(source: Source, config: PlanConfig) -> Plan:
    """Score ``source`` and allocate widths. Deterministic: same model, config, machine and versions, same plan.

    Raises PrunekitError where the target is out of reach, the text too short, or a score not finite.
    """
    method = config.method
    allocate = allocation(method.allocation)
    # Unknown names are refused before a model is loaded for minutes.
    importance(method.importance)
    if method.layer_importance:
        layer_importance(method.layer_importance)
    elif method.allocation in ("adapt", "drop"):
        raise PrunekitError(f"The allocation {method.allocation!r} needs a layer importance; name one.")
    budget = config.target.budget(source.shape, (pick_dtype(config.store_dtype) or source.dtype).itemsize)
    problem = Problem(
        budget,
        config.rounding,
        method.units,
        config.protected,
        method.attention_ratio,
        method.steps,
        method.amplitude,
        method.standardise,
    )
    check_protected(source.shape, config.protected)
    config.rounding.check_splits(source.shape)
    if method.allocation == "drop":
        check_droppable(source.shape, budget, config.protected)
    else:
        check_reachable(source.shape, budget, config.rounding, method.units, config.protected)
    check_length(config.calibration, source.config)
    calibration = load_calibration(config.calibration, load_tokenizer(source))
    check_tokens(calibration.blocks, source.config)
    model = load_model(source, dtype=config.dtype, device=config.device)
    computed = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    session = Session(
        model,
        source.family,
        lambda step: calibration.step(step).input_ids,
        importance=method.importance,
        layer_importance=method.layer_importance,
        batch_size=config.calibration.batch_size,
        seed=config.seed,
        checkpoint=config.checkpoint,
    )
    with progress(
        f"Planning ({method.name})", _steps(config, source.shape.parameters, source.shape.block_parameters, budget)
    ) as advance:
        allocated = allocate(session, problem, advance)
    plan = Plan(
        source=source.shape,
        layers=allocated.keeps,
        provenance={
            "model": {
                "name": model_label(source.name),
                "family": source.family.name,
                "fingerprint": source.fingerprint,
            },
            "method": method.describe(),
            "target": {"asked": config.target.text, "parameters": budget},
            "rounding": {
                "ffn_multiple": config.rounding.ffn_multiple,
                "min_ffn": config.rounding.min_ffn,
                "head_multiple": config.rounding.head_multiple,
                "kv_multiple": config.rounding.kv_multiple,
            },
            "protected_layers": sorted(config.protected),
            "calibration": calibration.describe(),
            "seed": config.seed,
            "computed_in": computed,
            "history": list(allocated.history),
            "versions": versions(),
        },
    )
    assert plan.shape.parameters <= budget
    return plan


def _steps(config: PlanConfig, parameters: int, blocks: int, budget: int) -> int:
    """Scoring passes that are to be expected: adapt takes 1/T of the blocks a step."""
    if config.method.allocation != "adapt":
        return 1
    return max(1, round((parameters - budget) / blocks * config.method.steps) + 1)
