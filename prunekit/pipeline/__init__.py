"""The order of the steps: plan → solve → rebuild → recover. What `prunekit plan` and `prunekit prune` call."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.pipeline.asked import Recovery, check_training_dtype, training_device
from prunekit.plan import Plan
from prunekit.plan.goals import Target, parse_target
from prunekit.plan.latency_table import LatencyTable
from prunekit.plan.recipe import DEFAULT, Recipe
from prunekit.plan.training import LOOPS
from prunekit.utils.files.replacing import CHECKPOINT, local
from prunekit.utils.names import nearest
from prunekit.utils.process.ranks import from_first

if TYPE_CHECKING:
    import torch

    from prunekit.checkpoint.rebuild import Written
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.pruning.planner import PlanConfig
    from prunekit.recovery.training.progress import Listener
    from prunekit.recovery.training.run import Recovered

LAYOUTS = ("per-layer", "uniform")
_GOALS = ("params", "blocks", "weights", "flops", "kv_cache", "latency")


@dataclass(frozen=True)
class Pruned:
    """A model that was pruned: the dense ``source``, the plan that was carried out, and what was written; ``recovered``
    tells how what was left was trained, where it was."""

    source: Source
    plan: Plan
    written: Written
    recovered: Recovered | None = None


def read_goals(goals: Mapping[str, Any]) -> Target:
    """What is asked of a pruned model, from the names that the options have: params, blocks, weights, flops (with
    context), kv_cache, latency (with latency_table). Values are texts ("0.8", "80%", "1.0B", "4GiB") or numbers.

    Raises PrunekitError where nothing is asked for, or a goal makes no sense.
    """
    extra = ("context", "latency_table")
    for name in goals:
        if name not in (*_GOALS, *extra):
            known = ", ".join((*_GOALS, *extra))
            raise PrunekitError(f"There is no goal {name!r}{nearest(name, (*_GOALS, *extra))}; there are {known}.")
    asked = {name: None if goals.get(name) is None else str(goals[name]) for name in _GOALS}
    table = goals.get("latency_table")
    if table is not None and not isinstance(table, LatencyTable):
        table = LatencyTable.load(table)
    return parse_target(**asked, context=goals.get("context"), table=table)  # type: ignore[arg-type]


def make_plan(
    source: Source | str,
    *,
    method: str = DEFAULT,
    effort: str | None = None,
    calib: str | None = None,
    recipe: Recipe | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    **goals: Any,
) -> Plan:
    """Decide how wide every layer of ``source`` becomes, as `prunekit plan` does: nothing is cut.

    ``source`` is a model as :func:`prunekit.models.source.resolve` gives it, or its name. ``method`` names one of
    `prunekit methods`, ``effort`` how much time the default one may take (quick, standard or best), ``calib`` the
    calibration text; a ``recipe`` (:meth:`prunekit.plan.recipe.Recipe.of`) has all three, and every other setting.
    ``goals`` are called as the options are (:func:`read_goals`). Raises PrunekitError where something makes no sense or
    can't be met.

    >>> plan = make_plan("smollm2-135m", blocks=0.8)  # doctest: +SKIP
    >>> plan.share_of_blocks  # doctest: +SKIP
    0.7996
    """
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import as_source
    from prunekit.pipeline.forecast.tell import foretell
    from prunekit.pipeline.planning import plan_model
    from prunekit.pruning.planner import plan_phases, round_phases, rounds_on_the_way
    from prunekit.utils.phases.telling import phases

    config = plan_config(goals, method, effort, calib, recipe, dtype=dtype, device=device)
    with phases(*plan_phases(config.recipe)):
        whole = as_source(source, revision=revision)
        dense = DenseModel(whole, dtype=dtype, device=device)
        rounds = rounds_on_the_way(whole, config)
        with phases(*round_phases(config.recipe, len(rounds))):
            foretell(dense, config.recipe, _share(whole, config), stored=0, rounds=rounds)
            return plan_model(whole, config, dense)


def prune(
    source: Source | str,
    out: str | Path,
    *,
    plan: Plan | str | Path | None = None,
    method: str = DEFAULT,
    effort: str | None = None,
    calib: str | None = None,
    recipe: Recipe | None = None,
    batch_size: int | None = None,
    layout: str = "per-layer",
    store_dtype: str = "auto",
    max_shard: str = "2GiB",
    overwrite: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    recover: Recovery | None = None,
    **goals: Any,
) -> Pruned:
    """Prune ``source`` and write it as the Hugging Face checkpoint ``out``, as `prunekit prune` does.

    Either ``goals`` say what is wanted and a plan is made as :func:`make_plan` does, or ``plan`` has been made. What a
    plan leaves is solved anew where its recipe says so: on the text of the plan, which ``calib`` locates, in batches of
    ``batch_size``. The model is loaded once and the text read once. Then the weights are cut, and stored in
    ``store_dtype`` in files of at most ``max_shard``. With ``recover``, pruning and training take turns, and what was
    interrupted goes on with the same call; the ``method`` may then be a loop (:mod:`prunekit.plan.training`). Ranks
    that have joined (:func:`prunekit.utils.process.ranks.joined`) share out the text; the first one writes. Raises
    PrunekitError where something makes no sense or can't be met; ``out`` appears only when it is whole.

    >>> made = prune("smollm2-135m", "smaller", blocks=0.8)  # doctest: +SKIP
    >>> made.plan.share_of_blocks, made.written.path  # doctest: +SKIP
    (0.7996, PosixPath('smaller'))
    """
    config, loop = None, None
    if recover is not None and method in LOOPS:
        loop, method = method, LOOPS[method].method
        if recipe is not None:
            if recipe.method.name != method:
                raise PrunekitError(f"{loop} cuts by {method}, and the recipe is one of {recipe.method.name}.")
            method = DEFAULT
    if plan is None:
        config = plan_config(goals, method, effort, calib, recipe, store_dtype=store_dtype, dtype=dtype, device=device)
    elif any(value is not None for value in goals.values()):
        raise PrunekitError("A plan already has its goals: give a plan or goals, not both.")
    if layout not in LAYOUTS:
        raise PrunekitError(f"The layout must be per-layer or uniform, got {layout!r}.")
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import as_source, pick_dtype
    from prunekit.plan.goals import parse_size
    from prunekit.utils.files.atomic import check_output_folder

    out = Path(out)
    plan = plan if plan is None or isinstance(plan, Plan) else Plan.load(plan)
    named = source if isinstance(source, str) else str(source.path)
    table = goals.get("latency_table")
    inputs = local(named, plan.file if plan else None, calib, None if isinstance(table, LatencyTable) else table)
    if recover is not None and recover.text:
        inputs = (*inputs, *local(*recover.text.split(",")))

    def check() -> None:
        if recover is not None and not overwrite:
            from prunekit.recovery.training.run import place_of
            from prunekit.recovery.training.run_folder import end

            end(place_of(out), out)
        check_output_folder(out, overwrite, kind=CHECKPOINT, inputs=inputs)

    from_first(check)
    pick_dtype(store_dtype)
    shard_bytes = parse_size(max_shard, "--max-shard")
    if plan is not None:
        # What an earlier version's plan asks for and is done no more is refused before the model is looked for.
        plan.read_recipe()
    if recover is not None:
        from prunekit.kernels.runtime.text_writer import text_writer
        from prunekit.pipeline.forecast.lesson import Lesson
        from prunekit.pipeline.forecast.tell import foretell
        from prunekit.pipeline.stages import prune_and_recover, read_recovery
        from prunekit.pruning.planner import PlanConfig, rounds_on_the_way
        from prunekit.recovery.training.progress import Listener
        from prunekit.recovery.training.run import place_of
        from prunekit.utils.phases.telling import phases

        asked = config or plan
        assert asked is not None
        training = read_recovery(recover, asked, loop, dtype)
        device = training_device(device)
        whole = as_source(source, revision=revision)
        # How many stages there will be is found out on the way.
        with _told(recover.listener or Listener(), recover.tensorboard) as listener, phases(more=True):
            if overwrite or not place_of(out).is_dir():
                # A run that goes on has been told of.
                share = asked.share_of_blocks if isinstance(asked, Plan) else _share(whole, asked)
                foretell(
                    DenseModel(whole, dtype=dtype, device=device),
                    asked if isinstance(asked, Plan) else asked.recipe,
                    share,
                    stored=(pick_dtype(store_dtype) or whole.dtype).itemsize,
                    out=out,
                    lesson=Lesson(whole.shape, share, training),
                    rounds=rounds_on_the_way(whole, asked) if isinstance(asked, PlanConfig) else (),
                )
            made = prune_and_recover(
                whole,
                out,
                asked,
                training,
                replace(recover, listener=listener),
                lambda dense, plan: solve(dense, plan, calib=calib, batch_size=batch_size),
                layout=layout,
                dtype=dtype,
                device=device,
                store_dtype=store_dtype,
                max_shard_bytes=shard_bytes,
                overwrite=overwrite,
                beside=_draw,
                writing=text_writer,
            )
        return Pruned(whole, made.plan, made.written, made)
    from prunekit.pipeline.forecast.tell import foretell
    from prunekit.pipeline.phases import prune_phases
    from prunekit.pruning.planner import round_phases, rounds_on_the_way
    from prunekit.utils.phases.telling import phases

    told: Any = config.recipe if config is not None else plan
    with ExitStack() as stack:
        stack.enter_context(phases(*prune_phases(told, plan is not None and computes(plan))))
        whole = as_source(source, revision=revision)
        dense = DenseModel(whole, dtype=dtype, device=device)
        left = _share(whole, config) if config is not None else plan.share_of_blocks if plan is not None else 1.0
        stored = (pick_dtype(store_dtype) or whole.dtype).itemsize
        rounds: tuple[float, ...] = ()
        if config is not None and not config.recipe.method.rotates:
            rounds = rounds_on_the_way(whole, config)
            stack.enter_context(phases(*round_phases(config.recipe, len(rounds))))
        if plan is None or computes(plan):
            foretell(dense, told, left, stored=stored, out=out, rounds=rounds)
        options: dict[str, Any] = {"overwrite": overwrite, "max_shard_bytes": shard_bytes}
        if config is not None and config.recipe.method.rotates:
            from prunekit.pruning.slicegpt import slice_model

            return Pruned(whole, *slice_model(whole, config, out, dense=dense, **options))
        from prunekit.checkpoint.manifest import written_once
        from prunekit.checkpoint.rebuild import rebuild

        if config is not None:
            from prunekit.pipeline.planning import plan_model

            plan = plan_model(whole, config, dense)
        assert plan is not None
        solved, weights = solve(dense, plan, calib=calib, batch_size=batch_size)
        del dense
        options |= {"layout": layout, "dtype": store_dtype, "weights": weights}
        written = written_once(lambda: rebuild(whole, solved, out, **options))
        return Pruned(whole, solved, written)


def recover(
    source: Source | str,
    teacher: Source | str,
    out: str | Path,
    *,
    text: str | None = None,
    tokens: str | int | None = None,
    minutes: float | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int | None = None,
    store_dtype: str = "auto",
    max_shard: str = "2GiB",
    checkpoint_minutes: float = 10.0,
    overwrite: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    teacher_revision: str | None = None,
    tensorboard: str | Path | None = None,
    listener: Listener | None = None,
) -> Recovered:
    """Train the pruned model ``source`` toward the dense ``teacher`` and write it as the checkpoint ``out``, as
    `prunekit recover` does.

    ``text`` is what it is trained on, for so many ``tokens`` ("10M") or about so many ``minutes``; ``settings`` are
    called as --set calls them (:mod:`prunekit.plan.training`). A training that was interrupted goes on where its last
    checkpoint stands, one every ``checkpoint_minutes``. ``listener`` is told of steps and notes, and curves for
    TensorBoard go into the folder ``tensorboard``. Raises PrunekitError where something makes no sense, the models
    don't belong together, or nothing can be written.

    >>> recover("smaller", "smollm2-135m", "recovered", tokens="1M").after  # doctest: +SKIP
    0.2312
    """
    from prunekit.kernels.runtime.text_writer import text_writer
    from prunekit.models.source import as_source, pick_dtype
    from prunekit.plan.goals import parse_count, parse_size
    from prunekit.plan.training import check_checkpoint_minutes, training_of
    from prunekit.recovery.training.progress import Listener
    from prunekit.recovery.training.run import Budget
    from prunekit.recovery.training.run import recover as train
    from prunekit.utils.phases.telling import phases
    from prunekit.utils.phases.titles import WRITING

    budget = Budget(None if tokens is None else parse_count(str(tokens), "--tokens"), minutes)
    config, texts = training_of(text, seed, settings or {})
    check_checkpoint_minutes(checkpoint_minutes)
    pick_dtype(store_dtype)
    check_training_dtype(dtype)
    device = training_device(device)
    with _told(listener or Listener(), tensorboard) as told, phases(WRITING):
        return train(
            as_source(source, revision=revision),
            as_source(teacher, revision=teacher_revision),
            Path(out),
            text=texts,
            budget=budget,
            config=config,
            dtype=dtype,
            device=device,
            store_dtype=store_dtype,
            max_shard_bytes=parse_size(max_shard, "--max-shard"),
            overwrite=overwrite,
            checkpoint_minutes=checkpoint_minutes,
            beside=_draw,
            listener=told,
            writing=text_writer,
        )


def _told(listener: Listener, tensorboard: str | Path | None) -> AbstractContextManager[Listener]:
    """``listener``, and curves for TensorBoard where they are wanted."""
    from prunekit.report.tensorboard import in_tensorboard

    return nullcontext(listener) if tensorboard is None else in_tensorboard(Path(tensorboard), listener)


def _draw(folder: Path, made: Recovered) -> None:
    """The learning curve, as rows and as a picture."""
    from prunekit.report.learning_curve import save_curve

    save_curve(folder, made.standing.steps, made.standing.held_out, made.used)


def computes(plan: Plan) -> bool:
    """Whether :func:`solve` has something to compute for ``plan``, so that it needs the plan's text."""
    from prunekit.recovery.flap_bias import is_compensated

    recipe = plan.read_recipe()
    return recipe is not None and ((recipe.refit is not None and plan.cuts) or is_compensated(plan, recipe))


def solve(
    dense: DenseModel, plan: Plan, *, calib: str | None = None, batch_size: int | None = None
) -> tuple[Plan, Mapping[str, torch.Tensor] | None]:
    """What is computed between plan and rebuild, by the plan's recipe: refitted and rescaled projections, or FLAP's
    biases, for ``rebuild(weights=...)``; None where nothing is. And the plan, with the text that this was computed on
    if that is not its own. The ``dense`` model may be used up.

    Raises PrunekitError where the text of the plan is missing, or something is not finite.
    """
    recipe = plan.read_recipe()
    if recipe is None or not computes(plan):
        return plan, None
    from prunekit.data.from_plan import text_of, told
    from prunekit.recovery.flap_bias import compensate
    from prunekit.recovery.recover import refit_plan

    what = "projections are refitted on" if recipe.refit else "means were taken over"
    text = plan.text or text_of(dense, plan, recipe, what, given=calib)
    if recipe.refit:
        return told(plan, text), refit_plan(dense, plan, recipe, text, batch_size).weights
    return told(plan, text), compensate(dense, plan, recipe, text, batch_size)


def _share(source: Source, config: PlanConfig) -> float:
    """About which share of the blocks a plan will leave, or of the channels a rotation. Raises PrunekitError where the
    target can't be met."""
    from prunekit.pruning.planner import read_task

    if config.recipe.method.rotates:
        from prunekit.pruning import slicegpt

        return slicegpt.share_of_channels(source, config)
    shape, task = source.shape, read_task(source, config)
    outside = shape.parameters - shape.block_parameters
    return min(1.0, max(0.0, (task.problem.budget - outside) / shape.block_parameters))


def plan_config(
    goals: Mapping[str, Any],
    method: str,
    effort: str | None,
    calib: str | None,
    recipe: Recipe | None,
    **machine: Any,
) -> PlanConfig:
    """What was asked for, and everything that can be checked before the model is looked for, checked."""
    target = read_goals(goals)
    if recipe is None:
        recipe = Recipe.of(method, effort=effort, calib=calib)
    elif effort is not None:
        raise PrunekitError("A recipe already has its effort: give one of the two, such as Recipe.of(effort='quick').")
    elif method != DEFAULT:
        raise PrunekitError("A recipe already names its method: give one of the two, such as Recipe.of('flap').")
    elif calib is not None:
        recipe = recipe.with_text(calib)
    target.check_method(recipe.method)
    from prunekit.pruning.planner import PlanConfig

    return PlanConfig(target, recipe, **machine)
