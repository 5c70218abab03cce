"""transformers models of any shape whose weights are views of an arena: made in a moment, nothing read or copied."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.models.shapes import Model
from prunekit.kernels.tuning.arena import Arena
from prunekit.models.modeling import pruned_config
from prunekit.plan.shape import ModelShape


def config_of(model: Model, shape: ModelShape) -> Any:
    """The transformers config of ``model`` with the layers of ``shape``."""
    config = model.dense_config()
    if not shape.is_uniform:
        config = pruned_config(model.family, config, shape.layers, range(shape.num_hidden_layers))
    return config


def build(model: Model, shape: ModelShape, arena: Arena) -> Any:
    """A model of ``shape``, on the arena's device and in its dtype."""
    from transformers import AutoModelForCausalLM

    config = config_of(model, shape)
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config, dtype=arena.memory.dtype)
    with torch.no_grad():
        for module in made.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    taken = arena.take(*weight.shape) if "norm" not in type(module).__name__.lower() else None
                    if taken is None:
                        taken = torch.ones(weight.shape, dtype=arena.memory.dtype, device=arena.memory.device)
                    module._parameters[name] = torch.nn.Parameter(taken, requires_grad=False)
    with torch.device(arena.memory.device):
        made.model.rotary_emb = type(made.model.rotary_emb)(made.config)
    made.tie_weights()
    return made.eval()
