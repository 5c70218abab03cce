"""What a run will take, told before it begins, and handed to its phases."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.data.mixture import parse_mix, split
from prunekit.data.self_generated import unwritten
from prunekit.data.sources import SELF
from prunekit.models.source import pick_device, pick_dtype
from prunekit.pipeline.forecast.room import Room, check_memory, room
from prunekit.pipeline.forecast.sizes import Comparing, Comparison
from prunekit.pipeline.forecast.work import Text, Work
from prunekit.plan import Plan
from prunekit.plan.allocations import AdaptConfig, OptimalConfig
from prunekit.pruning.allocation.adapt import rounds
from prunekit.pruning.allocation.base import Problem
from prunekit.pruning.allocation.stored_session import takes_weights_alone
from prunekit.pruning.importance.base import importance
from prunekit.utils.files.atomic import cache_folder
from prunekit.utils.phases.run import current
from prunekit.utils.phases.words import size
from prunekit.utils.process import ranks
from prunekit.utils.progress import aside

if TYPE_CHECKING:
    import torch

    from prunekit.data.calibration import CalibrationConfig
    from prunekit.models.dense import DenseModel
    from prunekit.pipeline.forecast.trial import Rates
    from prunekit.plan.recipe import Recipe
    from prunekit.plan.shape import ModelShape

# Fewer operations are over before it is worth to time any; seconds that are worth a sentence; of rescaling's text.
_SOON, _WORTH, _RESCALED = 4e12, 30.0, 0.4
_log = logging.getLogger("prunekit")


def foretell(dense: DenseModel, asked: Recipe | Plan, share: float, *, stored: int, out: Path | None = None) -> None:
    """Measure a few steps on random weights, and tell how long what is ``asked`` of ``dense`` will take, where that is
    long. A ``share`` of its blocks stays and is stored in ``stored`` bytes a number, in ``out`` (None: nothing is
    written). Raises PrunekitError where there is certainly too little memory for it."""
    recipe = asked.read_recipe() if isinstance(asked, Plan) else asked
    if recipe is None or recipe.method.rotates:
        return
    if not isinstance(asked, Plan) and takes_weights_alone(recipe.method) and recipe.refit is None:
        return
    source, device = dense.source, pick_device(dense.device)
    dtype = pick_dtype(dense.dtype) or source.dtype
    shape = source.shape
    outside = shape.parameters - shape.block_parameters
    size_out = 0 if out is None else int((outside + share * shape.block_parameters) * stored)
    work = Work(shape, share, _text(dense, asked, recipe, share), size_out)
    if work.operations() < _SOON:
        return
    from prunekit.utils.numerics.bf16 import has_fast_products

    needed = room(work, dtype.itemsize, fast=has_fast_products(device) and dtype.itemsize == 4)
    _warn(needed, work, device, out)
    if ranks.is_first():
        _measure_and_tell(dense, work, needed, dtype, device)


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
        text = replace(text, curves=0, fisher=0, scale=0, passes=0.0)
    comparing = Comparing(dense.source.shape, recipe, text, asked)
    if comparing.operations() < _SOON:
        return
    needed = comparing.room(dtype.itemsize, fast=has_fast_products(device) and dtype.itemsize == 4)
    _warn(needed, comparing.plans, device, out)
    if ranks.is_first():
        _measure_and_tell(dense, comparing.plans, needed, dtype, device, comparing.seconds)
        run = current.get()
        if asked.exports and run is not None and (run.foreseen() or 0.0) >= _WORTH:
            run.announce("Exports come on top. The first size tells how long they take.")


def _warn(needed: Room, work: Work, device: torch.device, out: Path | None) -> None:
    for sentence in (check_memory(needed, device), _short_of_disk(needed, work, out)):
        if sentence is not None and ranks.is_first():
            _log.warning("%s", sentence)


def _measure_and_tell(
    dense: DenseModel,
    work: Work,
    needed: Room,
    dtype: torch.dtype,
    device: torch.device,
    seconds_of: Callable[[Rates], Mapping[str, float]] | None = None,
) -> None:
    """``seconds_of`` gives the seconds of each phase by the rates; None: those of ``work``."""
    run = current.get()
    if run is None or not run.watchers:
        return
    from prunekit.pipeline.forecast.trial import measure

    text = work.text
    with aside("trial steps"):
        together = max(text.unwritten, default=0)
        needs = text.needs if text.passes else None
        rates = measure(dense.source, dtype=dtype, device=device, length=text.length, together=together, needs=needs)
    run.foresee(work.seconds(rates, ranks.size()) if seconds_of is None else seconds_of(rates))
    seconds = run.foreseen()
    if seconds is not None and seconds >= _WORTH:
        run.announce(sentence_of(seconds, needed, kept=_curves_are_kept() and bool(text.curves)))


def sentence_of(seconds: float, needed: Room, *, kept: bool = False) -> str:
    """``This takes about 9 minutes, 3.1 GB of memory and 0.6 GB of disk …``"""
    minutes = seconds / 60
    if minutes >= 100:
        time = f"{minutes / 60:.1f} hours"
    else:
        time = f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} seconds"
    less = ", and less time where an earlier run has kept loss curves" if kept else ""
    return (
        f"This takes about {time}, {size(needed.memory)} of memory and {size(needed.disk)} of disk{less} (a "
        "prediction from trial steps with one layer)."
    )


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
    drawing = method.allocation
    if isinstance(drawing, OptimalConfig):
        length = config.length
        return replace(
            made,
            curves=min(tokens, _whole(drawing.curve_tokens, length)),
            fisher=min(tokens, _whole(drawing.fisher_tokens, length)),
            scale=min(tokens, max(2 * length, _whole(drawing.scale_tokens, length))),
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


def _short_of_disk(needed: Room, work: Work, out: Path | None) -> str | None:
    """A sentence where the output will not fit beside what lies there."""
    if out is None:
        return None
    place = next((each for each in out.absolute().parents if each.is_dir()), None)
    if place is None:
        return None
    free = shutil.disk_usage(place).free
    if free >= work.stored:
        return None
    return f"The output takes about {size(work.stored)}, and {place} has {size(free)} free: make room before it comes."
