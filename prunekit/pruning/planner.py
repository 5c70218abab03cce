"""From a model, text, a method and a target to a Plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from prunekit.data.calibration import check_length, check_tokens
from prunekit.data.mixture import CalibrationText, calibration_text, text_phases
from prunekit.errors import PrunekitError
from prunekit.models.biases import addable
from prunekit.models.dense import DenseModel
from prunekit.models.source import load_tokenizer, pick_device, pick_dtype
from prunekit.plan import Plan, encode_ranges, shapes_in_place, whole_plan
from prunekit.plan.allocations import MEASURED, AdaptConfig, DropConfig, OptimalConfig
from prunekit.plan.budgets import Budgets
from prunekit.plan.goals import Target
from prunekit.plan.methods import Method
from prunekit.plan.recipe import Recipe
from prunekit.plan.shape import PRUNE_THE_ORIGINAL, LayerShape, ModelShape
from prunekit.pruning.allocation import Problem, allocation
from prunekit.pruning.allocation.adapt import rounds
from prunekit.pruning.allocation.base import check_compensable
from prunekit.pruning.allocation.drop import check_droppable
from prunekit.pruning.allocation.feasibility import check_protected, check_reachable
from prunekit.pruning.allocation.rounds import on_the_way
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.allocation.stored_session import StoredSession, takes_weights_alone
from prunekit.pruning.allocation.units import agreed
from prunekit.pruning.curves.loss_curves import LayerCurves
from prunekit.pruning.importance.base import importance, layer_importance
from prunekit.pruning.importance.scoring import tell_of_idle_ranks
from prunekit.pruning.loaded import Refit, loaded_session
from prunekit.pruning.reasons import explain
from prunekit.utils.advance import untold
from prunekit.utils.phases.titles import CURVES, FISHER, REFIT, SCORING, WHOLE, WIDTHS, of_round
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    from prunekit.models.source import Source


@dataclass(frozen=True)
class PlanConfig:
    """Everything that decides a plan, apart from the model: what is asked for, the recipe, and how it is computed.
    ``store_dtype`` is what the weights will be stored in (auto: as they are), which a target in bytes is counted in."""

    target: Target
    recipe: Recipe = field(default_factory=Recipe.of)
    dtype: str = "auto"
    store_dtype: str = "auto"
    device: str = "auto"


@dataclass(frozen=True)
class Stage:
    """One of several plans that follow each other down to a target. ``budgets`` are what the model may cost after it,
    counted by the layers of the dense model; ``so_far`` is the plan by which the source was made of that, None where
    they are the same; ``text`` is what is calibrated on, and ``asked`` says for people what this plan is for."""

    budgets: Budgets
    so_far: Plan | None
    text: CalibrationText
    asked: str


@dataclass(frozen=True)
class Task:
    """What an allocation is asked: ``problem`` by the layers of the source, which are those of the dense model that
    ``origins`` names. ``counted`` is the source's shape with the biases that the pruned model will have, ``changes``
    and ``compensation`` tell of these."""

    problem: Problem
    budgets: Budgets
    origins: tuple[int, ...]
    counted: ModelShape
    changes: dict[str, Any]
    compensation: dict[str, Any]


def planning_phases(recipe: Recipe) -> tuple[str, ...]:
    """The phases of :func:`compute_plan` that follow the text."""
    if not recipe.method.allocation.draws_curves:
        return (SCORING,)
    return (FISHER, CURVES, *([WHOLE] if {*MEASURED} & {*recipe.method.units} else []), WIDTHS)


def rounds_on_the_way(source: Source, config: PlanConfig, stage: Stage | None = None) -> tuple[float, ...]:
    """The shares of the layers that have gone each time that :func:`compute_plan` draws loss curves again. Raises
    PrunekitError as that does."""
    drawing = config.recipe.method.allocation
    if not isinstance(drawing, OptimalConfig) or not _redraws(config.recipe, stage):
        return ()
    parts = on_the_way(source.shape, read_task(source, config, stage).problem, drawing.redraw_after)
    return tuple(part.held(source.shape).removed_of_layers for part in parts)


def _redraws(recipe: Recipe, stage: Stage | None) -> bool:
    """Whether curves may be drawn again: on what is refitted, and in no later stage, which has new ones anyway."""
    return recipe.refit is not None and (stage is None or stage.so_far is None)


def round_phases(recipe: Recipe, rounds: int) -> tuple[str, ...]:
    """The phases of so many ``rounds`` in which :func:`compute_plan` draws loss curves again."""
    again = (REFIT, *(title for title in planning_phases(recipe) if title != WIDTHS))
    return tuple(of_round(title, number) for number in range(2, rounds + 2) for title in again)


def plan_phases(recipe: Recipe) -> tuple[str, ...]:
    """The phases of :func:`compute_plan`."""
    return (*text_phases(recipe.calibration.source), *planning_phases(recipe))


def read_task(source: Source, config: PlanConfig, stage: Stage | None = None) -> Task:
    """What :func:`compute_plan` has to do, checked before a model is loaded. Raises PrunekitError as that does."""
    recipe, method = config.recipe, config.recipe.method
    if method.rotates:
        raise PrunekitError(
            f"{method.name} narrows the hidden states of the whole model and removes no units, so there are no widths "
            f"to plan; use `prunekit prune --method {method.name}`, which says what the result costs."
        )
    config.target.check_method(method)
    # Unknown names are refused before a model is loaded for minutes.
    allocation(method.allocation.name)
    source.shape.check_whole_layers(PRUNE_THE_ORIGINAL)
    importance(method.importance)
    if method.layer_importance:
        layer_importance(method.layer_importance)
    rounding = recipe.rounding.rounding(source.shape.head_dim)
    so_far = whole_plan(source.shape) if stage is None or stage.so_far is None else stage.so_far
    origins = tuple(keep.index for keep in so_far.layers)
    protected = method.whole_layers(so_far.source.num_hidden_layers) if recipe.protected is None else recipe.protected
    check_protected(so_far.source, protected)
    protected = frozenset(place for place, origin in enumerate(origins) if origin in protected)
    changes: dict[str, Any] = {}
    compensation: dict[str, Any] = {}
    if method.compensates:
        check_compensable(method.units)
        changes, compensation = addable(source.family, source.config, method.units)
    counted = replace(source.shape, **changes)
    stored = (pick_dtype(config.store_dtype) or source.dtype).itemsize
    budgets = config.target.budgets(source.shape, stored, counted) if stage is None else stage.budgets.at(origins)
    budget = counted.parameters if budgets.parameters is None else budgets.parameters
    problem = Problem(
        budget=budget,
        rounding=rounding,
        units=method.units,
        protected=protected,
        budgets=budgets,
    )
    rounding.check(so_far.source)
    try:
        if isinstance(method.allocation, DropConfig):
            check_droppable(source.shape, budget, protected)
        else:
            check_reachable(source.shape, budgets, rounding, method.units, protected)
    except PrunekitError as error:
        if recipe.protected is not None or not protected:
            raise
        raise PrunekitError(
            f"{error} The method {method.name} keeps the layers {encode_ranges(tuple(sorted(protected)))} whole "
            "where the setting protect_layers names no others; `none` lets all of them shrink."
        ) from None
    return Task(problem, budgets, origins, counted, changes, compensation)


@dataclass(frozen=True)
class Prepared:
    """A model in a session for a task, the text it is calibrated on, and what a plan says of how it is computed."""

    task: Task
    session: Session
    calibration: CalibrationText
    computed: dict[str, str]


def prepare(
    source: Source,
    config: PlanConfig,
    dense: DenseModel | None = None,
    stage: Stage | None = None,
    refit: Refit | None = None,
) -> Prepared:
    """What :func:`compute_plan` allocates by. Raises PrunekitError as that does."""
    task, recipe, method = read_task(source, config, stage), config.recipe, config.recipe.method
    dense = dense or DenseModel(source, dtype=config.dtype, device=config.device)
    check_length(recipe.calibration, source.config)
    if recipe.rescale is not None:
        recipe.rescale.check(recipe.calibration.sequences)
    calibration = calibration_text(recipe.calibration, load_tokenizer(source), dense) if stage is None else stage.text
    check_tokens(calibration.blocks, source.config)
    session: Session
    if takes_weights_alone(method):
        pick_device(config.device)
        dtype = pick_dtype(config.dtype) or source.dtype
        computed = {"dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
        session = StoredSession(source, method, seed=recipe.seed, counted=task.counted, dtype=dtype)
    else:
        session, computed = loaded_session(source, recipe, calibration, dense, task.counted, refit)
        if not method.allocation.draws_curves:
            tell_of_idle_ranks(recipe.calibration.sequences, recipe.calibration.batch_size, method.importance)
    return Prepared(task, session, calibration, computed)


def compute_plan(
    source: Source,
    config: PlanConfig,
    dense: DenseModel | None = None,
    stage: Stage | None = None,
    refit: Refit | None = None,
) -> Plan:
    """Score ``source`` and allocate widths. Deterministic: same model, config, machine and versions, same plan, on
    however many ranks, which share out the batches of text and all get the plan.

    ``dense`` is its model, in ``config.dtype`` on ``config.device``, where other steps need it too. In a ``stage`` of
    several, the source is what the one before has made, and ``config.target`` that of the last one. ``refit`` makes the
    models that loss curves are drawn again on, where a lot goes; without it they are drawn once, and in later stages
    too, which go on from what was measured anew. Raises PrunekitError where the target is out of reach, the text too
    short, or a score not finite.
    """
    recipe, method = config.recipe, config.recipe.method
    made = prepare(source, config, dense, stage, refit if _redraws(recipe, stage) else None)
    task, session, calibration = made.task, made.session, made.calibration
    problem, budgets, rounding = task.problem, task.budgets, task.problem.rounding
    allocate = allocation(method.allocation.name)
    if method.allocation.draws_curves:
        # In phases of its own.
        allocated = allocate(session, problem, untold, method.allocation)
    else:
        with progress(SCORING, _steps(session, method, problem)) as advance:
            if isinstance(session, StoredSession):
                session.on_layer = advance
            allocated = allocate(session, problem, advance, method.allocation)
    keeps = agreed(allocated.keeps)
    # Costs are of layers by their place in the source.
    layers = shapes_in_place(keeps, source.shape.num_hidden_layers)
    plan = Plan(
        source=source.shape,
        layers=keeps,
        provenance={
            "model": {
                "name": model_label(source.name),
                "family": source.family.name,
                "fingerprint": source.fingerprint,
            },
            "method": method.describe(),
            "target": {
                "asked": config.target.text if stage is None else stage.asked,
                **({} if budgets.parameters is None else {"parameters": budgets.parameters}),
                "budgets": budgets.describe(layers),
            },
            "rounding": {
                "ffn_multiple": rounding.ffn_multiple,
                "min_ffn": rounding.min_ffn,
                "head_multiple": rounding.head_multiple,
                "kv_multiple": rounding.kv_multiple,
            },
            "protected_layers": sorted(task.origins[place] for place in problem.protected),
            "calibration": calibration.describe(),
            "seed": recipe.seed,
            "computed_in": made.computed,
            **({"compensation": task.compensation} if task.compensation else {}),
            **({"refit": asdict(recipe.refit)} if recipe.refit else {}),
            **({"rescale": asdict(recipe.rescale)} if recipe.rescale else {}),
            "history": list(allocated.history),
            **_why(made, allocated.curves, layers, (pick_dtype(config.store_dtype) or source.dtype).itemsize),
            "versions": versions(),
        },
        changes=task.changes,
        # By its name: a plan holds no paths.
        recipe=recipe.with_text(calibration.describe()["source"]),
        text=calibration,
    )
    assert budgets.fit(layers)
    return plan


def _why(
    made: Prepared, curves: Sequence[LayerCurves], shapes: Sequence[LayerShape], bytes_per_parameter: int
) -> dict[str, Any]:
    """Why each layer is as wide as it is, where loss curves decided it."""
    if not curves:
        return {}
    named = made.calibration.sources
    texts = [named[row] for row in made.session.text().scale_rows()]
    asked = (made.session.source, made.task.problem, curves, shapes, texts, bytes_per_parameter)
    return {"why": explain(*asked, mix=tuple(dict.fromkeys(named)))}


def draw_curves(made: Prepared, method: Method) -> tuple[LayerCurves, ...]:
    """The loss curves of a method that plans by them."""
    return made.session.curves(untold, method.units)


def _steps(session: Session, method: Method, problem: Problem) -> int:
    """How often ``advance`` is to be expected: weights alone are read a layer at a time, and adapt looks again after
    each step."""
    if isinstance(session, StoredSession):
        return session.source.num_hidden_layers + 1
    if not isinstance(method.allocation, AdaptConfig):
        return 1
    return rounds(session.source, problem, method.allocation)
