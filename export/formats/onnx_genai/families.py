"""What families beside Llama need of the fused graph: fused projections taken apart, two rotary tables, layers without
any, softcaps."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from prunekit.export.target import Job

if TYPE_CHECKING:
    import torch

    from prunekit.plan.shape import LayerShape, ModelShape

_FUSED_QKV, _FUSED_FFN = "self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"


def own_fields(job: Job) -> dict[str, Any]:
    """Fields that the builder's classes of some families read of a config beside the common ones."""
    config = job.source.config
    names = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
    fields = {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}
    # Gemma 3's class makes two tables; what it computes them of is not used.
    fields["rope_local_base_freq"] = 10000.0
    cos, _ = rotary_tables(job, 1, table_kinds(job)[0])
    fields["partial_rotary_factor"] = cos.shape[-1] / job.source.shape.head_dim
    return fields


def table_kinds(job: Job) -> tuple[str | None, str | None]:
    """The layer types of the model's rotary tables (None: one table for all): of layers that attend to everything, and
    of those with a window."""
    both = job.source.family.model_type == "gemma3_text"
    return ("full_attention", "sliding_attention") if both else (None, None)


def layer_kinds(job: Job) -> list[str]:
    """Each layer's type as its config has it, whether its window is narrower than the context or not."""
    config = job.source.config
    return list(getattr(config, "layer_types", None) or ["full_attention"] * job.source.shape.num_hidden_layers)


def rotary_tables(job: Job, length: int, kind: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines as the model's own rotary embedding makes them, float32 [length, rotated channels] each."""
    import copy

    import torch

    # Some kinds of scaling change their module when they meet long positions.
    rotary = copy.deepcopy(job.model.model.rotary_emb)
    with torch.no_grad():
        cos, sin = rotary(torch.zeros(1), torch.arange(length)[None], *([kind] if kind else []))
    return cos[0].float(), sin[0].float()


def rotates(job: Job, layer: int) -> bool:
    """Whether that layer turns its queries and keys at all: some of SmolLM3's don't."""
    own = getattr(job.source.config, "no_rope_layers", None)
    # The config names them the other way round: 1 where there are rotary embeddings.
    return bool(own[layer]) if own else True


def taken_apart(layer: Any, widths: LayerShape, head_dim: int) -> Any:
    """A decoder layer with fused projections as one with separate ones, rows of the same tensors. The layer itself
    stays as it is: the builder's own way would leave modules in it."""
    attention, mlp = layer.self_attn, layer.mlp
    if not hasattr(attention, "qkv_proj"):
        return layer
    queries, keys = widths.num_attention_heads * head_dim, widths.num_key_value_heads * head_dim
    query, key, value = _rows(attention.qkv_proj, queries, keys, keys)
    width = widths.intermediate_size
    gate, up = _rows(mlp.gate_up_proj, width, width)
    return SimpleNamespace(
        input_layernorm=layer.input_layernorm,
        post_attention_layernorm=layer.post_attention_layernorm,
        self_attn=SimpleNamespace(q_proj=query, k_proj=key, v_proj=value, o_proj=attention.o_proj),
        mlp=SimpleNamespace(gate_proj=gate, up_proj=up, down_proj=mlp.down_proj),
    )


def _rows(linear: Any, *counts: int) -> list[Any]:
    biases = [None] * len(counts) if linear.bias is None else linear.bias.split(counts)
    return [
        SimpleNamespace(weight=weight, bias=bias)
        for weight, bias in zip(linear.weight.split(counts), biases, strict=True)
    ]


def apart_moments(moments: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Moments of a fused projection's inputs, by the names of the parts too."""
    named = dict(moments)
    for name, values in moments.items():
        if name.endswith(_FUSED_QKV):
            named[name.replace("qkv_proj", "q_proj")] = named[name.replace("qkv_proj", "v_proj")] = values
            named[name.replace("qkv_proj", "k_proj")] = values
        elif name.endswith(_FUSED_FFN):
            named[name.replace("gate_up_proj", "gate_proj")] = named[name.replace("gate_up_proj", "up_proj")] = values
    return named


def joined(weights: Mapping[str, torch.Tensor], job: Job, shape: ModelShape) -> dict[str, torch.Tensor]:
    """Weights by the model's names: projections that were taken apart are put together again."""
    import torch

    made = dict(weights)
    modules = {coupling.module for coupling in job.source.family.couplings}
    for layer in range(shape.num_hidden_layers if "self_attn.qkv_proj" in modules else 0):
        place = f"model.layers.{layer}"
        for fused, parts in (
            (_FUSED_QKV, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            (_FUSED_FFN, ("mlp.gate_proj", "mlp.up_proj")),
        ):
            made[f"{place}.{fused}"] = torch.cat([made.pop(f"{place}.{part}.weight") for part in parts])
    return made
