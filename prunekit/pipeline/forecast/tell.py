"""What a run will take, told before it begins, and handed to its phases."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.data.groups import MOST_GROUPS
from prunekit.data.mixture import parse_mix, split
from prunekit.data.self_generated import CHUNK, unwritten
from prunekit.data.sources import SELF, has_fields
from prunekit.models.source import pick_device, pick_dtype
from prunekit.pipeline.forecast.room import PRUNE_LESS, TRAIN_LESS, Room, check_memory, room, training_room
from prunekit.pipeline.forecast.sentence import Parts, sentence_of
from prunekit.pipeline.forecast.sizes import Comparing, Comparison
from prunekit.pipeline.forecast.work import Text, Work
from prunekit.plan import Plan
from prunekit.plan.allocations import MEASURED, AdaptConfig, OptimalConfig
from prunekit.pruning.allocation.adapt import rounds
from prunekit.pruning.allocation.base import Problem
from prunekit.pruning.allocation.stored_session import takes_weights_alone
from prunekit.pruning.curves.text import scale_sequences
from prunekit.pruning.importance.base import importance
from prunekit.pruning.loaded import REFITTED
from prunekit.pruning.stages import before_the_last
from prunekit.utils.files.atomic import cache_folder
from prunekit.utils.measuring.crowd import watched
from prunekit.utils.phases.run import current
from prunekit.utils.phases.titles import CHECK, OWN_TEXT
from prunekit.utils.phases.words import size
from prunekit.utils.process import ranks
from prunekit.utils.progress import aside

if TYPE_CHECKING:
    import torch

    from prunekit.data.calibration import CalibrationConfig
    from prunekit.models.dense import DenseModel
    from prunekit.pipeline.forecast.lesson import Lesson
    from prunekit.pipeline.forecast.trial import Rates
    from prunekit.plan.recipe import Recipe
    from prunekit.plan.shape import ModelShape

# Fewer operations are over before it is worth to time any; seconds that are worth a sentence; of rescaling's text.
_SOON, _WORTH, _RESCALED = 4e12, 30.0, 0.4
# Tokens of a trial where no text is read to prune.
_SHORT = 256
_log = logging.getLogger("prunekit")


def foretell(
    dense: DenseModel,
    asked: Recipe | Plan,
    share: float,
    *,
    stored: int,
    out: Path | None = None,
    lesson: Lesson | None = None,
    rounds: tuple[float, ...] = (),
) -> None:
    """Measure a few steps on random weights, and tell how long what is ``asked`` of ``dense`` will take, and the
    ``lesson`` that follows (None: none), where that is long. A ``share`` of its blocks stays (of a rotation: of its
    channels) and is stored in ``stored`` bytes a number, in ``out`` (None: nothing is written). ``rounds`` are the
    shares that have gone when loss curves are drawn again, where that is done in one stage. Raises PrunekitError
    where there is certainly too little memory for it."""
    recipe = asked.read_recipe() if isinstance(asked, Plan) else asked
    computed = recipe is not None and (
        isinstance(asked, Plan) or not takes_weights_alone(recipe.method) or recipe.refit is not None
    )
    source, device = dense.source, pick_device(dense.device)
    dtype = pick_dtype(dense.dtype) or source.dtype
    shape = source.shape
    outside = shape.parameters - shape.block_parameters
    left = outside + share * shape.block_parameters
    if recipe is not None and recipe.method.rotates:
        left = share * shape.parameters
    size_out = 0 if out is None else int(left * stored)
    if not computed and lesson is None:
        # Weights are read and written one layer at a time: that takes no memory to speak of.
        _warn((_short_of_disk(size_out, out),))
        return

    def work_of(recipe: Recipe | None, share: float) -> Work:
        text = _text(dense, asked, recipe, share) if computed and recipe else Text(_SHORT, 1)
        return Work(shape, share, text, size_out)

    work = replace(work_of(recipe, share), rounds=rounds)
    if work.operations() < _SOON and (lesson is None or _is_short(lesson)):
        return
    from prunekit.utils.numerics.bf16 import has_fast_products

    fast = has_fast_products(device) and dtype.itemsize == 4
    rooms = [(room(work, dtype.itemsize, fast=fast), PRUNE_LESS)] if computed else []
    if lesson is not None:
        teacher = dtype.itemsize if device.type == "cuda" else 4
        tokens = lesson.asked.config.on(device.type).batch_tokens or 0
        rooms.append((training_room(lesson, teacher, tokens, ranks.size()), TRAIN_LESS))
    needed = Room(
        max(each.memory for each, _ in rooms),
        max(each.least for each, _ in rooms),
        sum(each.disk for each, _ in rooms) + (0 if computed else size_out),
    )
    _warn((*(check_memory(each, device, advice) for each, advice in rooms), _short_of_disk(size_out, out)))
    if not ranks.is_first():
        return

    def foreseen(rates: Rates) -> tuple[Mapping[str, float], Parts | None]:
        count = ranks.size()
        stages = 1 if lesson is None else lesson.stages(rates)
        found = (work if stages == 1 else replace(work, rounds=())).seconds(rates, count)
        if lesson is None:
            return found, None
        less = before_the_last(recipe) if recipe is not None else None
        works = []
        for number in range(1, stages):
            made = work_of(less, 1 - number / stages * (1 - share))
            works.append(replace(made, text=replace(made.text, unwritten=())).seconds(rates, count))
        pruning = sum(sum(each.values()) - each[CHECK] for each in (*works, found))
        written = lesson.writing(rates, dense, count)
        # The model may write text to train on in another phase of that name.
        first = {title: each for title, each in (works or [found])[0].items() if title != OWN_TEXT or not written}
        return first, Parts(pruning, lesson.seconds(rates, device.type, count, written), stages)

    writes = lesson is not None and SELF in lesson.asked.text.source
    _measure_and_tell(dense, work, needed, dtype, device, foreseen, CHUNK if writes else 0)


def foretell_sizes(dense: DenseModel, recipe: Recipe, asked: Comparison, *, planned: bool, out: Path) -> None:
    """As :func:`foretell`, of several sizes that are ``asked`` for by one ``recipe``: each is planned (``planned``: an
    earlier run has done it), pruned in memory and evaluated, and what it takes on disk lies beside ``out`` for a
    moment. Raises PrunekitError where there is certainly too little memory for it."""
    from prunekit.utils.numerics.bf16 import has_fast_products

    if not asked.shares:
        return
    device, dtype = pick_device(dense.device), pick_dtype(dense.dtype) or dense.source.dtype
    text = _text(dense, recipe, recipe, min(asked.shares.values()))
    if takes_weights_alone(recipe.method):
        text = replace(text, passes=0.0)
    if planned:
        text = replace(text, curves=0, fisher=0, scale=0, whole=0, refitted=0, passes=0.0)
    comparing = Comparing(dense.source.shape, recipe, text, asked)
    if comparing.operations() < _SOON:
        return
    needed = comparing.room(dtype.itemsize, fast=has_fast_products(device) and dtype.itemsize == 4)
    _warn((check_memory(needed, device), _short_of_disk(comparing.plans.stored, out)))
    if ranks.is_first():
        _measure_and_tell(dense, comparing.plans, needed, dtype, device, lambda rates: (comparing.seconds(rates), None))
        run = current.get()
        if asked.exports and run is not None and (run.foreseen() or 0.0) >= _WORTH:
            run.announce("Exports come on top. The first size tells how long they take.")


def _is_short(lesson: Lesson) -> bool:
    budget, shape = lesson.asked.budget, lesson.shape
    return 60 * (budget.minutes or 0) < _WORTH and 8.0 * shape.parameters * (budget.tokens or 0) < _SOON


def _warn(sentences: Iterable[str | None]) -> None:
    for sentence in sentences:
        if sentence is not None and ranks.is_first():
            _log.warning("%s", sentence)


def _measure_and_tell(
    dense: DenseModel,
    work: Work,
    needed: Room,
    dtype: torch.dtype,
    device: torch.device,
    foreseen: Callable[[Rates], tuple[Mapping[str, float], Parts | None]],
    together: int = 0,
) -> None:
    """``foreseen`` gives the seconds of each phase of pruning by the rates, and of its parts where training follows.
    The model writes at least ``together`` sequences at a time."""
    run = current.get()
    if run is None or not run.watchers:
        return
    from prunekit.pipeline.forecast.trial import measure

    text = work.text
    with aside("trial steps"):
        together = max(together, *text.unwritten, 0)
        needs = text.needs if text.passes else None
        rates, crowd = watched(
            lambda: measure(
                dense.source, dtype=dtype, device=device, length=text.length, together=together, needs=needs
            ),
            device,
        )
    found, parts = foreseen(rates)
    run.foresee(found)
    seconds = run.foreseen() if parts is None else parts.pruning + parts.training
    if seconds is not None and seconds >= _WORTH:
        run.announce(sentence_of(seconds, needed, kept=_curves_are_kept() and bool(text.curves), parts=parts))
        if crowd is not None:
            run.announce(crowd)


def _curves_are_kept() -> bool:
    folder = cache_folder() / "curves"
    try:
        return any(folder.iterdir())
    except OSError:
        return False


def _text(dense: DenseModel, asked: Recipe | Plan, recipe: Recipe, share: float) -> Text:
    """How much text each phase takes."""
    config, method = recipe.calibration, recipe.method
    tokens = config.sequences * config.length
    made = Text(config.length, config.batch_size, still_to_write(dense, config))
    if recipe.refit is not None:
        rescaled = 0
        if recipe.rescale is not None:
            rescaled = int(tokens * (_RESCALED if recipe.rescale.share is None else recipe.rescale.share))
        made = replace(made, refit=tokens - rescaled, rescaling=rescaled)
    if isinstance(asked, Plan):
        return replace(made, scored=tokens, passes=0.0)
    if method.rotates:
        return replace(made, turned=tokens)
    drawing = method.allocation
    if isinstance(drawing, OptimalConfig):
        length = config.length
        scale = min(tokens, length * scale_sequences(drawing, length, _texts(config)))
        return replace(
            made,
            curves=min(tokens, _whole(drawing.curve_tokens, length)),
            fisher=min(tokens, _whole(drawing.fisher_tokens, length)),
            scale=scale,
            refitted=min(tokens, _whole(REFITTED * drawing.curve_tokens, length)),
            whole=scale if {*MEASURED} & {*method.units} else 0,
        )
    needs = importance(method.importance).needs
    passes = 1
    if isinstance(drawing, AdaptConfig):
        shape = dense.source.shape
        passes = rounds(shape, _problem(shape, recipe, share), drawing)
    return replace(made, scored=tokens, passes=passes, needs=needs)


def still_to_write(dense: DenseModel, config: CalibrationConfig) -> tuple[int, ...]:
    """How many sequences each chunk of the calibration text has that the model has yet to write."""
    parts = parse_mix(config.source)
    counts = split(config.sequences, [part for _, part in parts])
    own = next((count for (name, _), count in zip(parts, counts, strict=True) if name == SELF), 0)
    return tuple(unwritten(dense, replace(config, sequences=own))) if own else ()


def _texts(config: CalibrationConfig) -> int:
    """How many texts and groups of them are told apart, at most: how many groups there are shows when they are read."""
    grouped = config.group is not None
    return sum(MOST_GROUPS if grouped and has_fields(name) else 1 for name, _ in parse_mix(config.source))


def _problem(shape: ModelShape, recipe: Recipe, share: float) -> Problem:
    """What an allocation will be asked, where nothing was pruned before."""
    method = recipe.method
    protected = method.whole_layers(shape.num_hidden_layers) if recipe.protected is None else recipe.protected
    return Problem(
        budget=int(shape.parameters - (1 - share) * shape.block_parameters),
        rounding=recipe.rounding.rounding(shape.head_dim),
        units=method.units,
        protected=frozenset(protected),
    )


def _whole(tokens: int, length: int) -> int:
    """Of whole sequences."""
    return -(-tokens // length) * length


def _short_of_disk(stored: int, out: Path | None) -> str | None:
    """A sentence where an output of ``stored`` bytes will not fit beside what lies there."""
    if out is None:
        return None
    place = next((each for each in out.absolute().parents if each.is_dir()), None)
    if place is None:
        return None
    free = shutil.disk_usage(place).free
    if free >= stored:
        return None
    return f"The output takes about {size(stored)}, and {place} has {size(free)} free: make room before it comes."
