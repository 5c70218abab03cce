"""Tiny random models of every family, and plans whose layers all differ. No download, milliseconds each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.models.families import FAMILIES, Family, family_of
from prunekit.models.modeling import per_layer, pruned_class, pruned_config, stock_config
from prunekit.models.slicing import LayerSlicer
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape, ModelShape
from tests.support.zeroing import LayerZeroer

VOCAB = 128
WINDOW = 8
MODEL_TYPES = tuple(FAMILIES)


@contextmanager
def one_thread() -> Iterator[None]:
    """Matrices this small are slower on two threads, and many times slower where other work keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# Only what makes a family behave as its real models do; everything else is the same for all.
_OWN_FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"head_dim": 16},
    "mistral": {"head_dim": 16, "sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "qwen3": {"head_dim": 16, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    "gemma2": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": WINDOW},
    "smollm3": {"use_sliding_window": True, "sliding_window": WINDOW, "no_rope_layer_interval": 2},
}


def tiny_config(model_type: str, *, layers: int = 4, tied: bool = False, bias: bool = False, **fields: Any) -> Any:
    """A stock config: hidden 64, 8 query and 4 KV heads, FFN 96. head_dim is 16, or 8 (64 / 8) where the family's
    config has no such field. ``bias`` turns on every bias the family has a switch for."""
    family = FAMILIES[model_type]
    switches = {flag for flag in (family.qkv_bias, family.o_bias, family.mlp_bias) if isinstance(flag, str)}
    return family.stock(family.config_class)(
        **{
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "intermediate_size": 96,
            "max_position_embeddings": 256,
            "tie_word_embeddings": tied,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": None,
            **dict.fromkeys(switches, bias),
            **_OWN_FIELDS.get(model_type, {}),
            **fields,
        }
    )


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough for errors to show, and norms and biases that do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(noise * (0.5 if "embed" in name else 0.15))


def tiny_model(model_type: str, *, seed: int = 0, config: Any = None, **fields: Any) -> Any:
    """A stock causal LM in float32 and eval mode, the same for the same seed."""
    family = FAMILIES[model_type]
    model = family.stock(family.causal_lm_class)(config if config is not None else tiny_config(model_type, **fields))
    randomize(model, seed)
    return model.eval()


def random_plan(shape: ModelShape, *, seed: int = 0, drop: tuple[int, ...] = ()) -> Plan:
    """A plan in which every layer keeps other widths: KV heads fall by layer, groups shrink, FFNs are odd."""
    rng = random.Random(seed)
    ffn_widths = (61, 37, 96, 50)
    layers = []
    for index, dense in enumerate(shape.layers):
        if index in drop:
            continue
        kv_heads = sorted(rng.sample(range(dense.num_key_value_heads), dense.num_key_value_heads - index % 4))
        group = max(1, dense.group_size - (index + seed) % 2)
        query = [
            kv * dense.group_size + head
            for kv in kv_heads
            for head in sorted(rng.sample(range(dense.group_size), group))
        ]
        width = min(dense.intermediate_size, ffn_widths[(index + seed) % 4])
        ffn = sorted(rng.sample(range(dense.intermediate_size), width))
        layers.append(LayerKeep(index, tuple(kv_heads), tuple(query), tuple(ffn)))
    return Plan(shape, tuple(layers))


def _with_layers(family: Family, model: Any, plan: Plan, config: Any, model_class: Any, cut: Any) -> Any:
    """``model_class(config)`` with the tensors of ``model``, each layer's passed through ``cut(keep)``."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.layers.")}
    for position, keep in enumerate(plan.layers):
        change = cut(keep)
        for name, tensor in model.model.layers[keep.index].state_dict().items():
            if not hasattr(change, "keeps") or change.keeps(name):
                state[f"model.layers.{position}.{name}"] = change(name, tensor)
    new = model_class(config).to(model.dtype)
    new.load_state_dict(state)
    return new.eval()


def rebuilt_model(model: Any, plan: Plan) -> Any:
    """The model a plan makes of ``model``: smaller tensors in the family's pruned class."""
    family = family_of(model.config.model_type)
    config = pruned_config(family, model.config, plan.shape.layers, [keep.index for keep in plan.layers])
    return _with_layers(
        family,
        model,
        plan,
        config,
        pruned_class(family, "ForCausalLM"),
        lambda keep: LayerSlicer(family, plan.source, keep),
    )


def zeroed_model(model: Any, plan: Plan) -> Any:
    """What a rebuilt model must equal: the dense model without the dropped layers, removed units set to zero."""
    family = family_of(model.config.model_type)
    config = stock_config(family, model.config, plan.source.layers[0], [keep.index for keep in plan.layers])
    return _with_layers(
        family,
        model,
        plan,
        config,
        family.stock(family.causal_lm_class),
        lambda keep: LayerZeroer(family, plan.source, keep),
    )


def model_code(family: Family) -> list[Path]:
    """The files that a per-layer checkpoint of ``family`` must carry next to its weights."""
    own = Path(per_layer.__file__)
    return [own.with_name(f"{family.pruned_module}.py"), own]


def widest(plan: Plan) -> LayerShape:
    """The narrowest shape that every layer of the plan fits into: padded per KV group."""
    kv = max(layer.num_key_value_heads for layer in plan.shape.layers)
    group = max(layer.group_size for layer in plan.shape.layers)
    return LayerShape(kv * group, kv, max(layer.intermediate_size for layer in plan.shape.layers))


def padded_model(model: Any, plan: Plan) -> Any:
    """The zero-padded uniform twin in the stock class."""
    family = family_of(model.config.model_type)
    target = widest(plan)
    config = stock_config(family, model.config, target, [keep.index for keep in plan.layers])
    return _with_layers(
        family,
        model,
        plan,
        config,
        family.stock(family.causal_lm_class),
        lambda keep: LayerSlicer(family, plan.source, keep, target),
    )
