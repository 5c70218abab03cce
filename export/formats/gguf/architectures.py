"""Which of llama.cpp's architectures computes a model, and at which widths."""

from __future__ import annotations

import math

from prunekit.checkpoint.layout import widest
from prunekit.errors import PrunekitError
from prunekit.export.formats.gguf.rope import Rotation, refusal, rotation_of
from prunekit.models.gguf.tensors import DECI, MAX_LAYERS, OPENELM, STOCK, Architecture
from prunekit.models.source import Source
from prunekit.plan import whole_plan
from prunekit.plan.shape import LayerShape, ModelShape

# What deci computes: no norms but the two before attention and FFN, SwiGLU, every channel of a head rotated.
_LIKE_LLAMA = frozenset({"llama", "mistral", "qwen2", "phi3"})
# These read frequencies from a tensor, with which every one can be set on its own.
_FREE_FREQUENCIES = frozenset({"llama", DECI, "phi3"})
# q_proj must be square in these.
_SQUARE = frozenset({"qwen2", "phi3", "olmo2"})
WINDOWED = frozenset({"gemma2", "gemma3"})
_GELU = frozenset({"gemma2", "gemma3_text"})
# llama.cpp takes the 27B models' own attention scale where it sees their number of layers.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}


def architecture_of(source: Source, context: int) -> Architecture:
    """The architecture that computes ``source`` over ``context`` tokens.

    Raises PrunekitError where llama.cpp has none, naming a target that takes the model.
    """
    family, shape, config = source.family, source.shape, source.config
    kind = family.model_type
    if kind not in STOCK:
        raise refusal(source, f"llama.cpp's {family.name} is not described to prunekit")
    if shape.num_hidden_layers > MAX_LAYERS:
        raise refusal(source, f"it has {shape.num_hidden_layers} layers and llama.cpp takes {MAX_LAYERS}")
    if any(layer.intermediate_size < 1 or layer.num_attention_heads < 1 for layer in shape.layers):
        # deci leaves the attention out of a layer that has no FFN, without a word.
        raise refusal(source, "a layer without attention or without FFN is computed wrongly by llama.cpp")
    act = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if act not in (("gelu_pytorch_tanh",) if kind in _GELU else ("silu", "swish")):
        raise refusal(source, f"llama.cpp has no {family.name} with the activation {act}")
    if getattr(config, "use_bidirectional_attention", None):
        raise refusal(source, "its attention sees the tokens behind as well as those before")
    stock = STOCK[kind]
    window = window_of(source)
    if window is not None and window < context and stock not in WINDOWED:
        raise PrunekitError(
            f"{source.name} attends to a sliding window of {window:,} tokens, which llama.cpp's {stock} has not; "
            f"say --context-length {window} to export it for texts within the window, or export to onnx."
        )
    rotation = rotation_of(source)
    name = _choose(source, rotation)
    written = shape if name in (DECI, OPENELM) else _alike(source, name)
    _check(source, name, rotation)
    return Architecture(name, written, written != shape, _query_scale(source, name, written))


def _choose(source: Source, rotation: Rotation) -> str:
    kind, shape = source.family.model_type, source.shape
    stock = STOCK[kind]
    fits = shape.is_uniform and not (stock in _SQUARE and not _is_square(shape))
    if kind in _LIKE_LLAMA and rotation.dimensions == shape.head_dim:
        return stock if fits and (rotation.kind != "free" or stock in _FREE_FREQUENCIES) else DECI
    if kind == "qwen3" and not shape.is_uniform and shape.tie_word_embeddings:
        return OPENELM
    return stock


def _alike(source: Source, name: str) -> ModelShape:
    """The model's shape with every layer as wide as the widest; in square architectures with the dense head counts."""
    shape = source.shape
    wide = widest(whole_plan(shape))
    if name in _SQUARE and wide.num_attention_heads * shape.head_dim != shape.hidden_size:
        fields = source.config.to_dict()
        dense = LayerShape(fields["num_attention_heads"], fields["num_key_value_heads"], wide.intermediate_size)
        if (
            dense.num_attention_heads * shape.head_dim != shape.hidden_size
            or dense.group_size < wide.group_size
            or dense.num_key_value_heads < wide.num_key_value_heads
        ):
            raise refusal(source, f"llama.cpp's {name} needs query heads that fill the hidden size together")
        wide = dense
    return shape.with_layers([wide] * shape.num_hidden_layers)


def _check(source: Source, name: str, rotation: Rotation) -> None:
    """Raises PrunekitError for what an architecture leaves out."""
    shape, config = source.shape, source.config
    if rotation.kind == "free" and name not in _FREE_FREQUENCIES:
        raise refusal(source, f"llama.cpp's {name} can't scale rotary embeddings as the model does")
    if name not in ("llama", DECI):
        if shape.o_bias or shape.mlp_bias:
            raise refusal(source, f"llama.cpp's {name} has no biases on its output projections")
        if shape.qkv_bias and name != "qwen2":
            raise refusal(source, f"llama.cpp's {name} has no biases on its attention projections")
    if name == "smollm3":
        turns = [bool(value) for value in getattr(config, "no_rope_layers", None) or []]
        if turns != [bool((index + 1) % 4) for index in range(shape.num_hidden_layers)]:
            raise refusal(source, "llama.cpp's smollm3 leaves rotation out in every fourth layer, and this model not")
    if name == "olmo2" and shape.tie_word_embeddings:
        raise refusal(source, "llama.cpp's olmo2 has no tied output head")
    caps = [getattr(config, f"{kind}_logit_softcapping", None) for kind in ("attn", "final")]
    if name == "gemma2" and not all(caps):
        raise refusal(source, "llama.cpp's gemma2 always caps logits, and this model not")
    if name == "gemma3" and caps[0]:
        raise refusal(source, "llama.cpp's gemma3 has no cap of attention logits")
    if name == "gemma2" and not shape.tie_word_embeddings:
        raise refusal(source, "llama.cpp's gemma2 has no output head of its own")


def _is_square(shape: ModelShape) -> bool:
    return all(layer.num_attention_heads * shape.head_dim == shape.hidden_size for layer in shape.layers)


def window_of(source: Source) -> int | None:
    """The sliding window that any layer of the model has, in tokens."""
    config = source.config
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not window or (types is not None and "sliding_attention" not in types):
        return None
    return int(window)


def windowed_layers(source: Source) -> list[bool]:
    """Which layers attend to a window only."""
    types = getattr(source.config, "layer_types", None) or ["full_attention"] * source.shape.num_hidden_layers
    return [kind == "sliding_attention" for kind in types]


def _query_scale(source: Source, name: str, shape: ModelShape) -> float:
    """Gemma names its own attention scale; llama.cpp knows it for the models that exist."""
    if name not in WINDOWED:
        return 1.0
    scaled = float(getattr(source.config, "query_pre_attn_scalar", None) or shape.head_dim)
    theirs = float(shape.head_dim)
    if shape.num_hidden_layers == _LAYERS_27B[name]:
        theirs = float(shape.hidden_size // shape.layers[0].num_attention_heads)
    return math.sqrt(theirs / scaled)
