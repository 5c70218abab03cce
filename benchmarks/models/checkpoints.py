"""Checkpoints of models with random weights, as `prunekit prune` would leave them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.models.shapes import Model
from prunekit.kernels.tuning.arena import Arena
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape, ModelShape

_SHARD_BYTES = 2 << 30


def write_dense(model: Model, folder: Path, arena: Arena) -> Path:
    """``model`` whole, in the dtype of ``arena``, which has room for its largest tensor. At most two shards are in
    memory."""
    from prunekit.checkpoint.rebuild import write_shards
    from prunekit.models.stored_weights import HEAD, expected_tensors

    folder.mkdir(parents=True)
    shape = model.shape
    named = [*expected_tensors(model.family, shape)]
    if not shape.tie_word_embeddings:
        named.append((HEAD, (shape.vocab_size, shape.hidden_size)))

    def drawn() -> Iterator[tuple[str, torch.Tensor]]:
        for name, size in named:
            if "norm" in name:
                yield name, torch.ones(size, dtype=arena.memory.dtype)
            else:
                yield name, arena.take(*size).to("cpu", copy=True)

    write_shards(folder, drawn(), len(named), _SHARD_BYTES, "Making a model")
    config = model.dense_config()
    config.architectures = [model.family.causal_lm_class]
    config.dtype = str(arena.memory.dtype).removeprefix("torch.")
    config.save_pretrained(folder)
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
