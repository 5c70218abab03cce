"""From a model, text, a method and a target to a Plan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import Calibration, CalibrationConfig, check_length, check_tokens
from prunekit.data.mixture import Mixed, calibration_text
from prunekit.errors import PrunekitError
from prunekit.models.source import load_model, load_tokenizer, pick_dtype
from prunekit.plan import Plan, encode_ranges
from prunekit.plan.goals import Target
from prunekit.plan.methods import METHODS, Method
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import PRUNE_THE_ORIGINAL, LayerShape
from prunekit.pruning.allocation import Problem, allocation
from prunekit.pruning.allocation.base import CURVES, check_compensable, check_units
from prunekit.pruning.allocation.drop import check_droppable
from prunekit.pruning.allocation.feasibility import check_protected, check_reachable
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.importance.base import importance, layer_importance
from prunekit.recovery.flap_bias import addable
from prunekit.recovery.refit import RefitConfig
from prunekit.recovery.rescale import RescaleConfig
from prunekit.utils.files.cache import cache_place
from prunekit.utils.numerics.bf16 import has_fast_products
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source


@dataclass(frozen=True)
class PlanConfig:
    """Everything that decides a plan, apart from the model. ``checkpoint`` turns gradient checkpointing on or off
    (None: as the free memory asks for). ``store_dtype`` is what the weights will be stored in (auto: as they are),
    which a target in bytes is counted in. ``protected`` layers stay whole (None: those that the method says). ``refit``
    and ``rescale`` say how `prune` solves projections anew and tunes their scales; the plan only records them."""

    target: Target
    method: Method = METHODS["adapt-pruner"]
    rounding: Rounding = field(default_factory=Rounding)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    protected: frozenset[int] | None = None
    seed: int = 0
    dtype: str = "auto"
    store_dtype: str = "auto"
    device: str = "auto"
    checkpoint: bool | None = None
    refit: RefitConfig | None = None
    rescale: RescaleConfig | None = None


def make_plan(source: Source, config: PlanConfig) -> Plan:
    """Score ``source`` and allocate widths. Deterministic: same model, config, machine and versions, same plan.

    Raises PrunekitError where the target is out of reach, the text too short, or a score not finite.
    """
    method = config.method
    if method.rotates:
        raise PrunekitError(
            f"{method.name} narrows the hidden states of the whole model and removes no units, so there are no widths "
            f"to plan; use `prunekit prune --method {method.name}`, which says what the result costs."
        )
    config.target.check_method(method)
    allocate = allocation(method.allocation)
    check_units(method.allocation, method.units)
    source.shape.check_whole_layers(PRUNE_THE_ORIGINAL)
    # Unknown names are refused before a model is loaded for minutes.
    importance(method.importance)
    if method.layer_importance:
        layer_importance(method.layer_importance)
    elif method.allocation in ("adapt", "drop"):
        raise PrunekitError(f"The allocation {method.allocation!r} needs a layer importance; name one.")
    protected = method.whole_layers(source.shape.num_hidden_layers) if config.protected is None else config.protected
    changes: dict[str, Any] = {}
    compensation: dict[str, Any] = {}
    # A refit makes up for what is cut better than a constant can.
    if method.compensate and method.allocation != "drop" and config.refit is None:
        check_compensable(method.units)
        changes, compensation = addable(source.family, source.config, method.units)
    counted = replace(source.shape, **changes)
    stored = (pick_dtype(config.store_dtype) or source.dtype).itemsize
    budgets = config.target.budgets(source.shape, stored, counted)
    budget = counted.parameters if budgets.parameters is None else budgets.parameters
    problem = Problem(
        budget=budget,
        rounding=config.rounding,
        units=method.units,
        protected=protected,
        attention_ratio=method.attention_ratio,
        steps=method.steps,
        amplitude=method.amplitude,
        standardise=method.standardise,
        budgets=budgets,
    )
    check_protected(source.shape, protected)
    config.rounding.check(source.shape)
    try:
        if method.allocation == "drop":
            check_droppable(source.shape, budget, protected)
        else:
            check_reachable(source.shape, budgets, config.rounding, method.units, protected)
    except PrunekitError as error:
        if config.protected is not None or not protected:
            raise
        raise PrunekitError(
            f"{error} The method {method.name} keeps the layers {encode_ranges(tuple(sorted(protected)))} whole "
            "where --protect-layers names no others; `none` lets all of them shrink."
        ) from None
    check_length(config.calibration, source.config)
    if config.rescale is not None:
        config.rescale.check(config.calibration.sequences)
    calibration = calibration_text(config.calibration, load_tokenizer(source), source, config.device)
    check_tokens(calibration.blocks, source.config)
    model = load_model(source, dtype=config.dtype, device=config.device)
    computed = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    fast = method.allocation == CURVES and config.dtype == "auto" and has_fast_products(model.device)
    if fast:
        computed["products"] = "bfloat16"
    session = Session(
        model,
        source.family,
        lambda step: calibration.step(step).input_ids,
        importance=method.importance,
        layer_importance=method.layer_importance,
        batch_size=config.calibration.batch_size,
        seed=config.seed,
        checkpoint=config.checkpoint,
        counted=counted,
        store=level_store(source, calibration, computed) if method.allocation == CURVES else None,
        fast=fast,
    )
    with progress(f"Planning ({method.name})", _steps(session, method, budget)) as advance:
        allocated = allocate(session, problem, advance)
    # Costs are of layers by their place in the source: what is dropped is there and has nothing.
    kept = {keep.index: keep.shape for keep in allocated.keeps}
    layers = [kept.get(index, LayerShape(0, 0, 0)) for index in range(source.shape.num_hidden_layers)]
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
            "target": {
                "asked": config.target.text,
                **({} if budgets.parameters is None else {"parameters": budgets.parameters}),
                "budgets": budgets.describe(layers),
            },
            "rounding": {
                "ffn_multiple": config.rounding.ffn_multiple,
                "min_ffn": config.rounding.min_ffn,
                "head_multiple": config.rounding.head_multiple,
                "kv_multiple": config.rounding.kv_multiple,
            },
            "protected_layers": sorted(protected),
            "calibration": calibration.describe(),
            "seed": config.seed,
            "computed_in": computed,
            **({"compensation": compensation} if compensation else {}),
            **({"refit": asdict(config.refit)} if config.refit else {}),
            **({"rescale": asdict(config.rescale)} if config.rescale else {}),
            "history": list(allocated.history),
            "versions": versions(),
        },
        changes=changes,
    )
    assert budgets.fit(layers)
    return plan


def _steps(session: Session, method: Method, budget: int) -> int:
    """How often ``advance`` is to be expected: adapt takes 1/T of the blocks a scoring pass."""
    if method.allocation == CURVES:
        a_layer = 2 + len({"attention-layer", "ffn-layer"} & set(method.units))
        return session.curve_steps() + session.source.num_hidden_layers * a_layer
    if method.allocation != "adapt":
        return 1
    shape = session.source
    return max(1, round((shape.parameters - budget) / shape.block_parameters * method.steps) + 1)


def level_store(source: Source, calibration: Calibration | Mixed, computed: dict[str, str]) -> Path:
    """Where level databases of that model on that text are kept: a plan for another target finds them there."""
    key = [source.fingerprint, calibration.fingerprint, computed, versions()]
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return cache_place("levels", name)
