"""How wide every layer of a decoder is, and what that costs: parameters, FLOPs, weight bytes, KV-cache bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal

from prunekit.errors import PrunekitError

QKNorm = Literal["none", "head", "all"]
Kind = Literal["attention", "ffn"]
Heads = tuple[int, int]
"""KV heads of a layer, and query heads that each of them serves."""


PRUNE_THE_ORIGINAL = "a model without it can't be scored; prune the model it was made of again, with a smaller target"
_WORDS: dict[Kind, str] = {"attention": "attention", "ffn": "FFN"}
# Far above any model that exists, low enough that a nonsensical file can't fill the memory before it is refused.
LIMITS = {
    "num_hidden_layers": 4096,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "vocab_size": 1 << 28,
}


@dataclass(frozen=True)
class LayerShape:
    """The widths of one decoder layer. Every KV head serves the same number of query heads.

    No heads at all: the layer has no attention. No FFN channels: it has no FFN. Norms and biases are gone with them.
    """

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise PrunekitError(f"{name} must be a whole number of at least 0, got {value!r}.")
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if (heads == 0) != (kv_heads == 0) or (kv_heads and heads % kv_heads):
            raise PrunekitError(
                f"{self.num_attention_heads} query heads can't be shared equally by {self.num_key_value_heads} KV "
                "heads; keep the same number of query heads in every KV group."
            )

    @property
    def group_size(self) -> int:
        """Query heads that one KV head serves."""
        return self.num_attention_heads // max(self.num_key_value_heads, 1)

    @property
    def removed(self) -> tuple[Kind, ...]:
        """The sub-layers that the layer lacks."""
        lacks: dict[Kind, bool] = {"attention": not self.num_attention_heads, "ffn": not self.intermediate_size}
        return tuple(kind for kind, lacking in lacks.items() if lacking)


@dataclass(frozen=True)
class ModelShape:
    """The geometry of a decoder-only model with gated FFNs. Needs no weights.

    ``qk_norm`` says which norm weights attention carries: none, ``head`` (one of head_dim for queries, one for keys)
    or ``all`` (over all query, and all key channels). ``norms_per_layer`` counts the norms of hidden_size in a layer.
    """

    hidden_size: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    layers: tuple[LayerShape, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QKNorm = "none"
    norms_per_layer: int = 2

    def __post_init__(self) -> None:
        for name in ("hidden_size", "head_dim", "vocab_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PrunekitError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if type(self.norms_per_layer) is not int or not 0 <= self.norms_per_layer <= 16:
            raise PrunekitError(f"norms_per_layer must be a whole number, got {self.norms_per_layer!r}.")
        for name in ("tie_word_embeddings", "qkv_bias", "o_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise PrunekitError(f"{name} must be true or false, got {getattr(self, name)!r}.")
        if not self.layers:
            raise PrunekitError("A model needs at least one decoder layer.")
        if self.qk_norm not in ("none", "head", "all"):
            raise PrunekitError(f"qk_norm must be none, head or all, got {self.qk_norm!r}.")

    @property
    def num_hidden_layers(self) -> int:
        return len(self.layers)

    @property
    def ffn_channel_parameters(self) -> int:
        """Parameters that one FFN channel costs: a row of gate and up, a column of down, their biases."""
        return 3 * self.hidden_size + (2 if self.mlp_bias else 0)

    @property
    def query_head_parameters(self) -> int:
        """Parameters that one query head costs: its rows of q_proj, its columns of o_proj."""
        norm = self.head_dim if self.qk_norm == "all" else 0
        return 2 * self.head_dim * self.hidden_size + (self.head_dim if self.qkv_bias else 0) + norm

    @property
    def kv_head_parameters(self) -> int:
        """Parameters that one KV head costs by itself, without the query heads it serves."""
        norm = self.head_dim if self.qk_norm == "all" else 0
        return 2 * self.head_dim * self.hidden_size + (2 * self.head_dim if self.qkv_bias else 0) + norm

    def attention_parameters(self, layer: LayerShape) -> int:
        """Parameters of a layer's attention, its norms (half of the layer's) and output bias included."""
        if not layer.num_attention_heads:
            return 0
        heads = (
            layer.num_attention_heads * self.query_head_parameters + layer.num_key_value_heads * self.kv_head_parameters
        )
        qk_norms = 2 * self.head_dim if self.qk_norm == "head" else 0
        norms = self.norms_per_layer - self.norms_per_layer // 2
        return heads + qk_norms + (norms + self.o_bias) * self.hidden_size

    def ffn_parameters(self, layer: LayerShape) -> int:
        """Parameters of a layer's FFN, its norms (half of the layer's) and output bias included."""
        if not layer.intermediate_size:
            return 0
        channels = layer.intermediate_size * self.ffn_channel_parameters
        return channels + (self.norms_per_layer // 2 + self.mlp_bias) * self.hidden_size

    def layer_parameters(self, layer: LayerShape) -> int:
        return self.attention_parameters(layer) + self.ffn_parameters(layer)

    @cached_property
    def block_parameters(self) -> int:
        """Parameters of all decoder layers."""
        return sum(self.layer_parameters(layer) for layer in self.layers)

    @property
    def embedding_parameters(self) -> int:
        """Parameters outside the decoder layers: input embedding, output head where untied, final norm."""
        tables = 1 if self.tie_word_embeddings else 2
        return tables * self.vocab_size * self.hidden_size + self.hidden_size

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.embedding_parameters

    def weight_bytes(self, bytes_per_parameter: float) -> int:
        return round(self.parameters * bytes_per_parameter)

    def kv_bytes_per_token(self, bytes_per_element: float = 2) -> int:
        """KV-cache bytes that one token takes in all layers (default: a 16-bit cache)."""
        heads = sum(layer.num_key_value_heads for layer in self.layers)
        return round(2 * heads * self.head_dim * bytes_per_element)

    def flops_per_token(self, context: int = 0) -> int:
        """Multiply-adds count 2. Matrix products of every layer and the output head for one token that attends to
        ``context`` earlier tokens (4 · head_dim FLOPs a query head and attended token)."""
        products = sum(
            layer.num_attention_heads * 2 * self.head_dim * self.hidden_size
            + layer.num_key_value_heads * 2 * self.head_dim * self.hidden_size
            + layer.intermediate_size * 3 * self.hidden_size
            for layer in self.layers
        )
        heads = sum(layer.num_attention_heads for layer in self.layers)
        return 2 * (products + self.vocab_size * self.hidden_size) + 4 * heads * self.head_dim * context

    def activation_numbers_per_token(self) -> int:
        """About how many numbers autograd keeps of a token, in all layers: ten tensors of hidden_size and query width,
        five of the FFN's width."""
        return sum(
            10 * self.hidden_size + 4 * layer.num_attention_heads * self.head_dim + 5 * layer.intermediate_size
            for layer in self.layers
        )

    def decode_bytes(self, bytes_per_parameter: float, context: int = 0) -> int:
        """Bytes that one decode step at batch 1 must read: every weight but an untied input embedding (a lookup), and
        the KV cache of ``context`` tokens at the same precision."""
        lookup = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        weights = (self.parameters - lookup) * bytes_per_parameter
        return round(weights + context * self.kv_bytes_per_token(bytes_per_parameter))

    @property
    def is_uniform(self) -> bool:
        """True where every layer has the same widths, and both sub-layers."""
        return len(set(self.layers)) == 1 and not self.layers[0].removed

    @property
    def bare_layer(self) -> int | None:
        """The first layer without attention or without FFN, None where every layer has both."""
        return next((index for index, layer in enumerate(self.layers) if layer.removed), None)

    def check_whole_layers(self, what: str) -> None:
        """Raises PrunekitError where a layer lacks attention or FFN; ``what`` can't be done then (a whole clause)."""
        if self.bare_layer is not None:
            lacking = self.layers[self.bare_layer].removed[0]
            raise PrunekitError(f"Layer {self.bare_layer} has no {_WORDS[lacking]}, and {what}.")

    def with_layers(self, layers: Iterable[LayerShape]) -> ModelShape:
        return replace(self, layers=tuple(layers))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelShape:
        """Reverse of :meth:`to_dict`. Raises PrunekitError where a field is missing, unknown or larger than any
        model's."""
        try:
            if len(data["layers"]) > LIMITS["num_hidden_layers"]:
                raise TypeError(f"it has {len(data['layers']):,} layers, which no model has")
            layers = tuple(LayerShape(**layer) for layer in data["layers"])
            made = cls(**{**data, "layers": layers})
            for each in (made, *layers):
                for name, limit in LIMITS.items():
                    if getattr(each, name, 0) > limit:
                        raise TypeError(f"its {name} is {getattr(each, name)}, which no model has")
            return made
        except (KeyError, TypeError) as error:
            raise PrunekitError(
                f"This is not a model shape: {error}. Make the plan again with `prunekit plan`."
            ) from None
