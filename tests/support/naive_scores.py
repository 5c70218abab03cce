"""Importance scores the slow way: full gradients, plain loops, gates that are really there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from prunekit.models.families import family_of
from prunekit.pruning.importance import score
from prunekit.pruning.importance.scores import LayerScores, Scores
from tests.support.tiny import VOCAB, tiny_model

# Plain and biased weights; fused projections; per-head norms; norms over all heads; capped, scaled Gemma.
CASES = {
    "llama": ("llama", False),
    "llama-bias": ("llama", True),
    "phi3": ("phi3", False),
    "qwen3-bias": ("qwen3", True),
    "olmo2": ("olmo2", False),
    "gemma2": ("gemma2", False),
}
GRADIENTS = ("taylor", "taylor2", "fisher")
LAYERS, BATCH = 3, 2
# Five sequences in batches of 2, 2 and 1: a mean over batches would not be the mean over sequences.
INPUT_IDS = torch.randint(2, VOCAB, (5, 12), generator=torch.Generator().manual_seed(3))
BATCHES = 3
# The reference runs in float64, the scores in float32 (norms and rotary angles are float32 in both).
TOLERANCE = 1e-4

Unit = list[tuple[str, Any]]


def make(case: str = "llama", **fields: Any) -> Any:
    model_type, bias = CASES[case]
    return tiny_model(model_type, layers=LAYERS, bias=bias, **fields)


def scored(model: Any, importance: str, layer_importance: str | None = None, **options: Any) -> Scores:
    family = family_of(model.config.model_type)
    ids = options.pop("input_ids", INPUT_IDS)
    return score(
        model,
        family,
        family.shape(model.config),
        ids,
        importance_name=importance,
        layer_importance_name=layer_importance,
        **{"batch_size": BATCH, **options},
    )


def close(got: torch.Tensor, want: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert got.dtype == torch.float64 and got.shape == want.shape
    assert want.abs().max() > 0
    # A share of the largest: gates cancel, so a small one has no relative accuracy.
    assert ((got - want).abs().max() / want.abs().max()).item() <= tolerance


def units(model: Any) -> tuple[list[Unit], list[list[Unit]], list[Unit]]:
    """The weights of every KV head without its group, every query head [K][G] and every FFN channel, by hand.

    Nothing of ``Family.couplings``: this is what it must agree with.
    """
    config = model.config
    heads, groups, width = config.num_attention_heads, config.num_key_value_heads, config.intermediate_size
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    fused = config.model_type == "phi3"
    wide = config.model_type == "olmo2"

    def run(start: int) -> slice:
        return slice(start * dim, (start + 1) * dim)

    query: list[Unit] = []
    for head in range(heads):
        name = "self_attn.qkv_proj" if fused else "self_attn.q_proj"
        unit: Unit = [(f"{name}.weight", run(head)), (f"{name}.bias", run(head))]
        unit.append(("self_attn.o_proj.weight", (slice(None), run(head))))
        query.append(unit + ([("self_attn.q_norm.weight", run(head))] if wide else []))
    kv: list[Unit] = []
    for head in range(groups):
        if fused:
            rows = [run(heads + head), run(heads + groups + head)]
            kv.append([("self_attn.qkv_proj.weight", r) for r in rows])
        else:
            unit = [(f"self_attn.{p}_proj.{kind}", run(head)) for p in "kv" for kind in ("weight", "bias")]
            kv.append(unit + ([("self_attn.k_norm.weight", run(head))] if wide else []))
    ffn: list[Unit] = []
    for channel in range(width):
        if fused:
            unit = [("mlp.gate_up_proj.weight", channel), ("mlp.gate_up_proj.weight", width + channel)]
        else:
            unit = [(f"mlp.{p}_proj.{kind}", channel) for p in ("gate", "up") for kind in ("weight", "bias")]
        ffn.append([*unit, ("mlp.down_proj.weight", (slice(None), channel))])
    size = heads // groups
    return kv, [query[k * size : (k + 1) * size] for k in range(groups)], ffn


def add_up(model: Any, saliency: Callable[[int, str], torch.Tensor | None]) -> list[LayerScores]:
    """Sums of ``saliency(layer, tensor name)`` over the weights of every unit."""
    kv, query, ffn = units(model)

    def total(layer: int, unit: Unit) -> float:
        values = ((saliency(layer, name), place) for name, place in unit)
        return sum(value[place].sum().item() for value, place in values if value is not None)

    result = []
    for layer in range(LAYERS):
        heads = [[total(layer, unit) for unit in group] for group in query]
        groups = [total(layer, own) + sum(members) for own, members in zip(kv, heads, strict=True)]
        channels = [total(layer, unit) for unit in ffn]
        result.append(LayerScores(*(torch.tensor(v, dtype=torch.float64) for v in (groups, heads, channels))))
    return result


def sequence_losses(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Mean loss of every sequence, in the model's own precision (transformers' own loss rounds to float32)."""
    logits = model(input_ids=input_ids, use_cache=False).logits
    chance = logits[:, :-1].log_softmax(-1)
    return -chance.gather(-1, input_ids[:, 1:, None]).squeeze(-1).mean(1)


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def naive_taylor(model: Any) -> list[LayerScores]:
    total = {name: torch.zeros_like(weight) for name, weight in weights(model).items()}
    for batch in INPUT_IDS.split(BATCH):
        for name, gradient in gradients(model, sequence_losses(model, batch).mean()).items():
            total[name] += (weights(model)[name] * gradient).abs() * len(batch) / len(INPUT_IDS)
    return add_up(model, lambda layer, name: total.get(f"model.layers.{layer}.{name}"))


def naive_taylor2(model: Any) -> list[LayerScores]:
    fisher = {name: torch.zeros_like(weight) for name, weight in weights(model).items()}
    for sequence in INPUT_IDS:
        for name, gradient in gradients(model, sequence_losses(model, sequence[None])[0]).items():
            fisher[name] += gradient**2 / len(INPUT_IDS)
    saliency = {name: weight**2 * fisher[name] for name, weight in weights(model).items()}
    return add_up(model, lambda layer, name: saliency.get(f"model.layers.{layer}.{name}"))


def naive_magnitude(model: Any, power: int) -> list[LayerScores]:
    saliency = {name: weight.abs() ** power for name, weight in weights(model).items()}
    return add_up(model, lambda layer, name: saliency.get(f"model.layers.{layer}.{name}"))


class Gates:
    """A real gate on every unit of a model: one a query head, one a KV group (both at o_proj), one an FFN channel."""

    def __init__(self, model: Any):
        config = model.config
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        options: dict[str, Any] = {"dtype": torch.float64, "requires_grad": True}
        self.query = [torch.ones(groups, heads // groups, **options) for _ in range(LAYERS)]
        self.kv = [torch.ones(groups, **options) for _ in range(LAYERS)]
        self.ffn = [torch.ones(config.intermediate_size, **options) for _ in range(LAYERS)]
        for index, layer in enumerate(model.model.layers):
            layer.self_attn.o_proj.register_forward_pre_hook(lambda _, args, i=index: (self._heads(args[0], i),))
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, args, i=index: (args[0] * self.ffn[i],))

    def _heads(self, x: torch.Tensor, index: int) -> torch.Tensor:
        gate = self.query[index] * self.kv[index][:, None]
        return (x.unflatten(-1, (gate.numel(), -1)) * gate.flatten()[:, None]).flatten(-2)

    def all(self) -> list[torch.Tensor]:
        return [*self.kv, *self.query, *self.ffn]


def naive_fisher(model: Any) -> list[LayerScores]:
    gates = Gates(model)
    sums = [torch.zeros_like(gate) for gate in gates.all()]
    for sequence in INPUT_IDS:
        loss = sequence_losses(model, sequence[None])[0]
        for total, gradient in zip(sums, torch.autograd.grad(loss, gates.all()), strict=True):
            total += gradient**2
    return [LayerScores(*(sums[kind * LAYERS + layer].detach() for kind in range(3))) for layer in range(LAYERS)]


def seen_by(model: Any, module: str) -> list[list[list[float]]]:
    """The inputs of ``module`` of every layer, token by token: [layers][tokens][channels]."""
    seen: list[list[list[float]]] = [[] for _ in range(LAYERS)]
    handles = [
        layer.get_submodule(module).register_forward_pre_hook(lambda _, args, i=i: seen[i].extend(args[0][0].tolist()))
        for i, layer in enumerate(model.model.layers)
    ]
    with torch.no_grad():
        for sequence in INPUT_IDS:
            model(input_ids=sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def naive_channels(model: Any, module: str, formula: Callable[[list[float], list[float]], float]) -> list[list[float]]:
    """``formula(column of the weight, its input over all tokens)`` for every input channel of every layer."""
    result = []
    for layer, tokens in zip(model.model.layers, seen_by(model, module), strict=True):
        columns = layer.get_submodule(module).weight.T.tolist()
        result.append([formula(column, list(x)) for column, x in zip(columns, zip(*tokens, strict=True), strict=True)])
    return result


def naive_wanda_column(column: list[float], x: list[float]) -> float:
    return sum(abs(w) for w in column) / len(column) * sum(value * value for value in x) ** 0.5


def naive_flap_column(column: list[float], x: list[float]) -> float:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / (len(x) - 1)
    return variance * sum(w * w for w in column)


def naive_activation(model: Any, formula: Callable[[list[float], list[float]], float], mean: bool) -> list[LayerScores]:
    groups = model.config.num_key_value_heads
    heads = model.config.num_attention_heads
    result = []
    for attention, ffn in zip(
        naive_channels(model, "self_attn.o_proj", formula), naive_channels(model, "mlp.down_proj", formula), strict=True
    ):
        dim = len(attention) // heads
        query = [sum(attention[h * dim : (h + 1) * dim]) / (dim if mean else 1) for h in range(heads)]
        query_KG = torch.tensor(query, dtype=torch.float64).view(groups, heads // groups)
        result.append(LayerScores(query_KG.sum(1), query_KG, torch.tensor(ffn, dtype=torch.float64)))
    return result


def naive_minitron(model: Any) -> list[LayerScores]:
    """The mean over each sequence of a channel's size, or of the length of a head's channels; L2 over sequences."""
    groups, heads = model.config.num_key_value_heads, model.config.num_attention_heads
    count, length = INPUT_IDS.shape

    def over_all(sizes: list[float]) -> float:
        means = [sum(sizes[n * length : (n + 1) * length]) / length for n in range(count)]
        return sum(mean * mean for mean in means) ** 0.5

    result = []
    for attention, ffn in zip(seen_by(model, "self_attn.o_proj"), seen_by(model, "mlp.down_proj"), strict=True):
        dim = len(attention[0]) // heads
        query = [
            over_all([sum(value * value for value in token[h * dim : (h + 1) * dim]) ** 0.5 for token in attention])
            for h in range(heads)
        ]
        query_KG = torch.tensor(query, dtype=torch.float64).view(groups, heads // groups)
        channels = [over_all([abs(value) for value in x]) for x in zip(*ffn, strict=True)]
        result.append(LayerScores(query_KG.sum(1), query_KG, torch.tensor(channels, dtype=torch.float64)))
    return result


NAIVE: dict[str, Callable[[Any], list[LayerScores]]] = {
    "taylor": naive_taylor,
    "taylor2": naive_taylor2,
    "fisher": naive_fisher,
    "magnitude": lambda model: naive_magnitude(model, 2),
    "magnitude-l1": lambda model: naive_magnitude(model, 1),
    "wanda": lambda model: naive_activation(model, naive_wanda_column, mean=False),
    "flap": lambda model: naive_activation(model, naive_flap_column, mean=True),
    "activation": naive_minitron,
}
