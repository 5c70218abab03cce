"""What each decoder layer of a pruned checkpoint is made of, as plain data: no vLLM needed to read or test it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from prunekit.models.families import Family, family_of
from prunekit.plan.shape import LayerShape


@dataclass(frozen=True)
class LayerBlueprint:
    """One decoder layer: its own widths, and how its attention sees positions.

    ``window`` is the tokens that a sliding attention sees, None for all; ``rope`` the rotary parameters of
    config.json, None for a layer without rotary embedding. A removed attention has no heads, a removed FFN no channels.
    """

    shape: LayerShape
    window: int | None
    rope: dict[str, Any] | None

    @property
    def has_attention(self) -> bool:
        return self.shape.num_attention_heads > 0

    @property
    def has_ffn(self) -> bool:
        return self.shape.intermediate_size > 0


@dataclass(frozen=True)
class Blueprint:
    """A pruned decoder. ``attention_scale`` multiplies q·k; ``embedding_scale`` the embedding, None for none."""

    family: Family
    layers: tuple[LayerBlueprint, ...]
    hidden_size: int
    head_dim: int
    vocab_size: int
    max_positions: int
    eps: float
    activation: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    tied: bool
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    embedding_scale: float | None


def describe(config: Any) -> Blueprint:
    """The Blueprint of a transformers config, dense or per-layer. Raises PrunekitError for an unknown family."""
    family = family_of(config.model_type)
    shape = family.shape(config)
    layers = tuple(
        LayerBlueprint(each, _window(config, index), _rope(config, index)) for index, each in enumerate(shape.layers)
    )
    query_scale = getattr(config, "query_pre_attn_scalar", None) or shape.head_dim
    return Blueprint(
        family=family,
        layers=layers,
        hidden_size=shape.hidden_size,
        head_dim=shape.head_dim,
        vocab_size=shape.vocab_size,
        max_positions=config.max_position_embeddings,
        eps=config.rms_norm_eps,
        activation=getattr(config, "hidden_activation", None) or config.hidden_act,
        qkv_bias=shape.qkv_bias,
        o_bias=shape.o_bias,
        mlp_bias=shape.mlp_bias,
        tied=shape.tie_word_embeddings,
        attention_scale=query_scale**-0.5,
        attention_softcap=getattr(config, "attn_logit_softcapping", None),
        logit_softcap=getattr(config, "final_logit_softcapping", None),
        embedding_scale=math.sqrt(shape.hidden_size) if family.scaled_embedding else None,
    )


def _window(config: Any, index: int) -> int | None:
    # Where a family has the switch use_sliding_window, its config has settled these two by it.
    window: int | None = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    return (window or None) if types is None or types[index] == "sliding_attention" else None


def _rope(config: Any, index: int) -> dict[str, Any] | None:
    with_rope = getattr(config, "no_rope_layers", None)
    # The list says of every layer whether it *has* rotary embedding, whatever its name.
    if with_rope is not None and not with_rope[index]:
        return None
    rope: dict[str, Any] = config.rope_parameters
    types = getattr(config, "layer_types", None)
    own = None if types is None else rope.get(types[index])
    return dict(own or rope)
