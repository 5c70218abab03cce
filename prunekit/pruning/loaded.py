"""A model in memory in a session, with what is kept of it between runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prunekit.plan import LayerKeep, encode_ranges
from prunekit.plan.allocations import OptimalConfig
from prunekit.pruning.allocation.session import Further, Session
from prunekit.utils.files.cache import cache_key, cache_place
from prunekit.utils.numerics.bf16 import has_fast_products
from prunekit.utils.process.ranks import is_first
from prunekit.utils.provenance import versions

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prunekit.data.mixture import CalibrationText
    from prunekit.models.dense import DenseModel
    from prunekit.models.source import Source
    from prunekit.plan.recipe import Recipe
    from prunekit.plan.shape import ModelShape


REFITTED = 2
"""How many times the text of the curves is refitted on before they are drawn again. On that text alone, what is solved
errs less there than elsewhere: half of SmolLM2-135M then had a KL of 1.005 in place of 0.984."""


class Refit(Protocol):
    """Cuts the model ``dense`` of shape ``shape`` down to ``keeps`` and solves what is left anew as ``recipe`` says, on
    ``ids`` [N, L], in a phase of that ``title``. The dense model is used up."""

    def __call__(
        self,
        dense: DenseModel,
        shape: ModelShape,
        keeps: tuple[LayerKeep, ...],
        recipe: Recipe,
        ids: torch.Tensor,
        *,
        title: str,
    ) -> nn.Module: ...


def loaded_session(
    source: Source,
    recipe: Recipe,
    calibration: CalibrationText,
    dense: DenseModel,
    counted: ModelShape,
    refit: Refit | None,
) -> tuple[Session, dict[str, str]]:
    """The model in memory, and what a plan says of how it is computed. ``counted`` is as sessions have it; ``refit``
    makes the models that loss curves are drawn again on (None: they are drawn once)."""
    method = recipe.method
    drawing = method.allocation if isinstance(method.allocation, OptimalConfig) else None
    model = dense.take() if method.allocation.uses_up_model else dense.share()
    computed = {"dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    fast = drawing is not None and dense.dtype == "auto" and has_fast_products(model.device)
    if fast:
        computed["products"] = "bfloat16"
    further = None
    if drawing is not None and refit is not None:
        further = _further(source, calibration, dense, recipe, computed, drawing, refit)
    session = Session(
        model,
        source.family,
        lambda step: calibration.step(step).input_ids,
        importance=method.importance,
        layer_importance=method.layer_importance,
        batch_size=recipe.calibration.batch_size,
        seed=recipe.seed,
        gradient_checkpointing=recipe.calibration.gradient_checkpointing,
        counted=counted,
        drawing=drawing,
        store=None if drawing is None or not is_first() else curve_folder(source, calibration, computed, drawing),
        fast=fast,
        sources=calibration.sources,
        further=further,
    )
    return session, computed


def _further(
    source: Source,
    calibration: CalibrationText,
    dense: DenseModel,
    recipe: Recipe,
    computed: dict[str, str],
    drawing: OptimalConfig,
    refit: Refit,
) -> Further:
    """How curves are drawn again: on what is left of the ``dense`` model, refitted."""
    ids = calibration.step(0).input_ids
    ids = ids[: -(-REFITTED * drawing.curve_tokens // ids.shape[1])]

    def model(keeps: tuple[LayerKeep, ...], title: str) -> nn.Module:
        return refit(dense, source.shape, keeps, recipe, ids, title=title)

    def store(keeps: tuple[LayerKeep, ...]) -> Path | None:
        if not is_first():
            return None
        left = [[keep.index, *map(encode_ranges, (keep.kv_heads, keep.query_heads, keep.ffn))] for keep in keeps]
        assert recipe.refit is not None
        return curve_folder(source, calibration, computed, drawing, left, asdict(recipe.refit), ids.numel())

    return Further(model, store)


def curve_folder(
    source: Source,
    calibration: CalibrationText,
    computed: dict[str, str],
    drawing: OptimalConfig,
    *further: Any,
) -> Path:
    """Where the loss curves of that model on that text are kept: a plan for another target finds them there, and one
    that was ended before goes on. ``further`` tells in JSON values what was made of the model before they are drawn."""
    drawn = {name: value for name, value in asdict(drawing).items() if name != "redraw_after"}
    key: list[Any] = [source.fingerprint, calibration.fingerprint, computed, drawn, versions(), *further]
    if len(set(calibration.sources)) > 1:
        # Earlier versions drew the scale's sequences from a mix as they came.
        key.append("scale by texts in turns")
    if calibration.config.group is not None:
        key.append(calibration.sources)
    return cache_place("curves", cache_key(key))
