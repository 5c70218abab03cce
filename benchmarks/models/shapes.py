"""The shapes that are measured, and irregular plans for them, made by the real allocator from synthetic scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from prunekit.models.families import FAMILIES, Family
from prunekit.plan import LayerKeep
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.pruning.allocation import Problem, allocation
from prunekit.pruning.allocation.session import Session
from prunekit.pruning.importance.scores import LayerScores, Scores

_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Model:
    """A model by the figures of its config.json; no weights, no download. ``config`` holds what its shape doesn't."""

    name: str
    model_type: str
    shape: ModelShape
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    def dense_config(self) -> Any:
        """The stock transformers config."""
        layer = self.shape.layers[0]
        return self.family.stock(self.family.config_class)(
            **{
                "vocab_size": self.shape.vocab_size,
                "hidden_size": self.shape.hidden_size,
                "intermediate_size": layer.intermediate_size,
                "num_hidden_layers": self.shape.num_hidden_layers,
                "num_attention_heads": layer.num_attention_heads,
                "num_key_value_heads": layer.num_key_value_heads,
                "tie_word_embeddings": self.shape.tie_word_embeddings,
                **self.config,
            }
        )


def _model(name: str, model_type: str, shape: ModelShape, **config: Any) -> Model:
    return Model(name, model_type, shape, config)


MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        # In the order in which they are measured: the goals name 1B and 8B.
        _model(
            "llama-3.2-1b",
            "llama",
            ModelShape(2048, 64, 128256, True, (LayerShape(32, 8, 8192),) * 16),
            head_dim=64,
            rms_norm_eps=1e-5,
            max_position_embeddings=131072,
            rope_parameters={**_LLAMA3_ROPE, "factor": 32.0},
        ),
        _model(
            "llama-3.1-8b",
            "llama",
            ModelShape(4096, 128, 128256, False, (LayerShape(32, 8, 14336),) * 32),
            head_dim=128,
            rms_norm_eps=1e-5,
            max_position_embeddings=131072,
            rope_parameters={**_LLAMA3_ROPE, "factor": 8.0},
        ),
        _model(
            "smollm2-135m",
            "llama",
            ModelShape(576, 64, 49152, True, (LayerShape(9, 3, 1536),) * 30),
            head_dim=64,
            rms_norm_eps=1e-5,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        ),
        _model(
            "qwen2.5-7b",
            "qwen2",
            ModelShape(3584, 128, 152064, False, (LayerShape(28, 4, 18944),) * 28, qkv_bias=True),
            rms_norm_eps=1e-6,
            max_position_embeddings=131072,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
    )
}

# For rehearsals: biases, and widths and heads that are irregular from the start.
TINY = _model(
    "tiny",
    "qwen2",
    ModelShape(32, 16, 48, False, (LayerShape(6, 3, 77),) * 2, qkv_bias=True),
    head_dim=16,
    rms_norm_eps=1e-6,
    max_position_embeddings=256,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)


class SyntheticSession(Session):
    """Stands for a model: scores come from a seed, so that a plan for a real shape takes seconds and no weights."""

    def __init__(self, source: ModelShape, seed: int = 0):
        self.source = source
        self.keeps = tuple(LayerKeep.everything(index, layer) for index, layer in enumerate(source.layers))
        generator = torch.Generator().manual_seed(seed)

        def random(*size: int) -> torch.Tensor:
            return torch.rand(*size, generator=generator, dtype=torch.float64)

        # Bell-shaped: as in real models, a few layers stand out and most are much alike.
        self._of_layers = torch.randn(source.num_hidden_layers, generator=generator, dtype=torch.float64)
        self._units = [
            LayerScores(
                random(layer.num_key_value_heads),
                random(layer.num_key_value_heads, layer.group_size),
                random(layer.intermediate_size),
            )
            for layer in source.layers
        ]

    def score(self, step: int = 0) -> Scores:
        """The same scores at every step, of the units that are left."""
        layers = []
        for keep, units in zip(self.keeps, self._units, strict=True):
            query = units.query_heads.flatten()[list(keep.query_heads)].view(len(keep.kv_heads), -1)
            layers.append(LayerScores(units.kv_heads[list(keep.kv_heads)], query, units.ffn[list(keep.ffn)]))
        return Scores("random", tuple(layers), self._of_layers, "random", loss=0.0)

    def shrink(self, keeps: tuple[LayerKeep, ...]) -> None:
        self.keeps = keeps


def allocated_shape(dense: ModelShape, percent: int, seed: int = 0) -> ModelShape:
    """``dense`` without ``percent`` % of its decoder blocks' parameters: adapt-pruner's widths at multiple 1."""
    budget = dense.block_parameters * (100 - percent) // 100 + dense.embedding_parameters
    problem = Problem(budget, Rounding(ffn_multiple=1))
    session = SyntheticSession(dense, seed)
    allocated = allocation("adapt")(session, problem, lambda *args, **kwargs: None)
    return dense.with_layers(keep.shape for keep in allocated.keeps)


# Query heads, KV heads and FFN width of every layer, as allocated_shape gives them: a GPU needn't wait for the
# allocator, which takes up to half a minute a plan. Written by `python benchmarks/models/shapes.py`.
PLANS = Path(__file__).with_name("plans.json")


def pruned_shape(dense: ModelShape, percent: int) -> ModelShape:
    """:func:`allocated_shape`, for the shapes and shares of the GPU check from the file that holds them."""
    if percent == 0:
        return dense
    name = next((model.name for model in MODELS.values() if model.shape == dense), None)
    kept = json.loads(PLANS.read_text(encoding="utf-8")) if PLANS.is_file() else {}
    layers = kept.get(name, {}).get(str(percent)) if name else None
    if layers is None:
        return allocated_shape(dense, percent)
    return dense.with_layers(LayerShape(*layer) for layer in layers)


def rounded_shape(shape: ModelShape, multiple: int = 64) -> ModelShape:
    """``shape`` with every FFN at the nearest multiple, at least one of it."""
    return shape.with_layers(
        replace(layer, intermediate_size=max(1, round(layer.intermediate_size / multiple)) * multiple)
        for layer in shape.layers
    )


def main() -> None:
    """Allocate anew and write the file."""
    plans: dict[str, dict[str, list[list[int]]]] = {}
    for model in MODELS.values():
        plans[model.name] = {}
        for percent in (20, 40, 60):
            layers = allocated_shape(model.shape, percent).layers
            plans[model.name][str(percent)] = [
                [layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size] for layer in layers
            ]
    PLANS.write_text(json.dumps(plans, separators=(",", ":")).replace('},"', '},\n"').replace(']],"', ']],\n"') + "\n")


if __name__ == "__main__":
    main()
