"""Checkpoints of models with random weights, as `prunekit prune` would leave them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.models.build import build
from benchmarks.models.shapes import Model
from prunekit.kernels.tuning.arena import Arena
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape, ModelShape


def write_dense(model: Model, folder: Path, arena: Arena) -> Path:
    """``model`` whole."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    build(model, model.shape, arena).save_pretrained(folder)
    return folder


def write_pruned(dense: Path, shape: ModelShape, folder: Path) -> Path:
    """The checkpoint ``dense`` cut to ``shape``: of every layer the first units stay."""
    from prunekit.checkpoint.rebuild import rebuild
    from prunekit.models.source import resolve

    source = resolve(str(dense))
    plan = Plan(source.shape, tuple(map(_first_units, range(len(shape.layers)), source.shape.layers, shape.layers)))
    rebuild(source, plan, folder)
    return folder


def _first_units(index: int, whole: LayerShape, left: LayerShape) -> LayerKeep:
    heads = range(left.num_key_value_heads)
    query = tuple(head * whole.group_size + member for head in heads for member in range(left.group_size))
    return LayerKeep(index, tuple(heads), query, tuple(range(left.intermediate_size)))
