"""Which of llama.cpp's architectures computes a model, under which names it wants the tensors, and how it rotates.

Legend: H query heads, K KV heads, D head_dim, E hidden size, F FFN channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.families import Family
from prunekit.shape import LayerShape, ModelShape
from prunekit.source import Source

if TYPE_CHECKING:
    import torch

# Every layer brings its own head counts and FFN width only in these two.
DECI, OPENELM = "deci", "openelm"
_STOCK = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "olmo2": "olmo2",
    "smollm3": "smollm3",
}
# These rotate neighbouring channels, where transformers rotates halves: rows of q and k have to change places.
_PAIRS = frozenset({"llama", DECI, "smollm3"})
# These read rope_freqs.weight, with which every frequency can be set on its own.
_FREE_FREQUENCIES = frozenset({"llama", DECI})
# q_proj must be square in these.
_SQUARE = frozenset({"qwen2", "phi3", "olmo2"})
_WINDOWS = frozenset({"gemma2", "gemma3"})
_GELU = frozenset({"gemma2", "gemma3_text"})
_MAX_LAYERS = 512
# llama.cpp takes the 27B models' own attention scale where it sees their number of layers.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Architecture:
    """How a model is written. ``twin``: every layer padded to the widest. ``pairs``: q and k rows change places.
    ``fused``: q, k and v in one tensor. ``query_scale`` makes up for another attention scale than the model's."""

    name: str
    twin: bool = False
    query_scale: float = 1.0

    @property
    def pairs(self) -> bool:
        return self.name in _PAIRS

    @property
    def fused(self) -> bool:
        return self.name == OPENELM


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding as llama.cpp gets it. ``factors`` divide the frequencies one by one (rope_freqs.weight, or
    Phi-3's two tensors), ``attention`` scales sine and cosine, ``context`` is as far as this holds (None: the model's)."""

    base: float
    dimensions: int
    kind: str = "none"
    factor: float = 1.0
    original: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float = 1.0
    factors: tuple[float, ...] | None = None
    context: int | None = None
    window_base: float | None = None


@dataclass(frozen=True)
class Entry:
    """One tensor of the file, and the checkpoint's that it is made of. ``make`` gets these in float32 or as stored,
    ``split`` undoes it."""

    name: str
    parts: tuple[str, ...]
    make: Callable[[Sequence[torch.Tensor]], torch.Tensor]
    split: Callable[[torch.Tensor], list[torch.Tensor]]


def architecture_of(source: Source, context: int) -> Architecture:
    """The architecture that computes ``source`` over ``context`` tokens.

    Raises PrunekitError where llama.cpp has none, naming a target that takes the model.
    """
    family, shape, config = source.family, source.shape, source.config
    kind = family.model_type
    if kind not in _STOCK:
        raise _refusal(source, f"llama.cpp's {family.name} is not described to prunekit")
    if shape.num_hidden_layers > _MAX_LAYERS:
        raise _refusal(source, f"it has {shape.num_hidden_layers} layers and llama.cpp takes {_MAX_LAYERS}")
    if any(layer.intermediate_size < 1 or layer.num_attention_heads < 1 for layer in shape.layers):
        # deci leaves the attention out of a layer that has no FFN, without a word.
        raise _refusal(source, "a layer without attention or without FFN is computed wrongly by llama.cpp")
    act = _field(config, "hidden_act", None) or _field(config, "hidden_activation", None)
    if act not in (("gelu_pytorch_tanh",) if kind in _GELU else ("silu", "swish")):
        raise _refusal(source, f"llama.cpp has no {family.name} with the activation {act}")
    stock = _STOCK[kind]
    if stock not in _WINDOWS:
        window = window_of(source)
        if window is not None and window < context:
            raise PrunekitError(
                f"{source.name} attends to a sliding window of {window:,} tokens, which llama.cpp's {stock} has not; "
                f"say --context-length {window} to export it for texts within the window, or export to onnx."
            )
    scaling = rotation_of(source).kind
    uniform = shape.is_uniform
    made: Architecture
    if kind in ("llama", "mistral"):
        made = Architecture(stock if uniform else DECI)
    elif kind == "qwen2":
        square = uniform and _is_square(shape)
        made = Architecture(stock if square and scaling in ("none", "linear", "yarn") else DECI)
    elif kind == "qwen3" and not uniform and shape.tie_word_embeddings and scaling in ("none", "linear", "yarn"):
        made = Architecture(OPENELM)
    else:
        made = Architecture(stock, twin=not uniform)
    _check_stock(source, made, scaling)
    return replace(made, query_scale=_query_scale(source, made))


def _check_stock(source: Source, made: Architecture, scaling: str) -> None:
    """Raises PrunekitError for what an architecture leaves out."""
    shape, config = source.shape, source.config
    free = made.name in _FREE_FREQUENCIES
    if scaling == "free" and not free and made.name != "phi3":
        raise _refusal(source, f"llama.cpp's {made.name} can't scale rotary embeddings as the model does")
    if made.name not in ("llama", DECI) and (shape.o_bias or shape.mlp_bias):
        raise _refusal(source, f"llama.cpp's {made.name} has no biases on its output projections")
    if made.name not in ("llama", DECI, "qwen2") and shape.qkv_bias:
        raise _refusal(source, f"llama.cpp's {made.name} has no biases on its attention projections")
    if made.name in _SQUARE and not made.twin and not _is_square(shape):
        raise _refusal(source, f"llama.cpp's {made.name} needs query heads that fill the hidden size together")
    if made.name == "smollm3":
        turns = [bool(value) for value in _field(config, "no_rope_layers", None) or []]
        if turns != [bool((index + 1) % 4) for index in range(shape.num_hidden_layers)]:
            raise _refusal(source, "llama.cpp's smollm3 leaves rotation out in every fourth layer, and this model not")
    if made.name == "olmo2" and shape.tie_word_embeddings:
        raise _refusal(source, "llama.cpp's olmo2 has no tied output head")
    if made.name == "gemma2" and not shape.tie_word_embeddings:
        raise _refusal(source, "llama.cpp's gemma2 has no output head of its own")


def _is_square(shape: ModelShape) -> bool:
    return all(layer.num_attention_heads * shape.head_dim == shape.hidden_size for layer in shape.layers)


def _refusal(source: Source, why: str) -> PrunekitError:
    return PrunekitError(f"{source.name} can't be written as GGUF: {why}. Export it to onnx or vllm instead.")


def _field(config: Any, name: str, default: Any) -> Any:
    return getattr(config, name, default)


def window_of(source: Source) -> int | None:
    """The sliding window that any layer of the model has, in tokens."""
    config = source.config
    window = _field(config, "sliding_window", None)
    types = _field(config, "layer_types", None)
    if not window or (types is not None and "sliding_attention" not in types):
        return None
    if types is None and _field(config, "use_sliding_window", True) is False:
        return None
    return int(window)


def windowed_layers(source: Source) -> list[bool]:
    """Which layers attend to a window only."""
    types = _field(source.config, "layer_types", None) or ["full_attention"] * source.shape.num_hidden_layers
    return [kind == "sliding_attention" for kind in types]


def _query_scale(source: Source, made: Architecture) -> float:
    """Gemma names its own attention scale; llama.cpp knows it for the models that exist."""
    if made.name not in _WINDOWS:
        return 1.0
    shape = source.shape
    scaled = float(_field(source.config, "query_pre_attn_scalar", None) or shape.head_dim)
    theirs = float(shape.head_dim)
    if shape.num_hidden_layers == _LAYERS_27B[made.name]:
        theirs = float(shape.hidden_size // max(layer.num_attention_heads for layer in shape.layers))
    return math.sqrt(theirs / scaled)


def rotation_of(source: Source) -> Rotation:
    """The model's rotary embedding. ``kind`` is llama.cpp's name of the scaling, or "free" where only setting every
    frequency will do. Raises PrunekitError for scalings that transformers has and this can't express."""
    config, shape = source.config, source.shape
    parameters = dict(_field(config, "rope_parameters", None) or {})
    window_base = None
    if "full_attention" in parameters:
        windowed = dict(parameters.get("sliding_attention") or {})
        if windowed.get("rope_type", "default") != "default":
            raise _refusal(source, "its windowed layers scale their rotary embedding")
        window_base = float(windowed.get("rope_theta", 10000.0))
        parameters = dict(parameters["full_attention"])
    kind = parameters.get("rope_type") or "default"
    base = float(parameters.get("rope_theta") or 10000.0)
    share = float(parameters.get("partial_rotary_factor") or _field(config, "partial_rotary_factor", None) or 1.0)
    rotation = Rotation(base, int(shape.head_dim * share), window_base=window_base)
    if share != 1.0 and source.family.model_type != "phi3":
        raise _refusal(source, "it rotates only a part of every head")
    original = parameters.get("original_max_position_embeddings") or _field(
        config, "original_max_position_embeddings", None
    )
    if kind in ("default", "dynamic"):
        # "dynamic" scales only beyond the positions the model was made for.
        return rotation
    if kind == "linear":
        return replace(rotation, kind="linear", factor=float(parameters["factor"]))
    if kind == "yarn" and source.family.model_type not in ("llama", "mistral", "phi3"):
        factor = float(parameters["factor"])
        _, attention = _frequencies(source, kind, parameters)
        return replace(
            rotation,
            kind="yarn",
            factor=factor,
            original=int(original or config.max_position_embeddings),
            beta_fast=float(parameters.get("beta_fast") or 32),
            beta_slow=float(parameters.get("beta_slow") or 1),
            # llama.cpp puts in 1 + 0.1 ln(factor) by itself.
            attention=attention / (1 + 0.1 * math.log(factor)),
        )
    if kind in ("llama3", "yarn", "longrope"):
        factors, attention = _frequencies(source, kind, parameters)
        # LongRoPE has two sets of frequencies: llama.cpp chooses by the room it is given, transformers by the text.
        context = int(original) if kind == "longrope" and original else None
        return replace(rotation, kind="free", attention=attention, factors=factors, context=context, original=context)
    raise _refusal(source, f"llama.cpp has no {kind} scaling of rotary embeddings")


def _frequencies(source: Source, kind: str, parameters: dict[str, Any]) -> tuple[tuple[float, ...], float]:
    """What divides each of the plain frequencies, and the scale of sine and cosine, as transformers computes them."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from prunekit.modeling import stock_config

    shape = source.shape
    dense = replace(shape.layers[0])
    heads = shape.hidden_size // shape.head_dim or 1
    if shape.hidden_size % shape.head_dim == 0:
        dense = LayerShape(heads, heads, dense.intermediate_size)
    config = stock_config(source.family, source.config, dense, list(range(shape.num_hidden_layers)))
    inverse, attention = ROPE_INIT_FUNCTIONS[kind](config, device=torch.device("cpu"))
    count = len(inverse)
    plain = 1.0 / float(parameters.get("rope_theta") or 10000.0) ** (torch.arange(count, dtype=torch.float64) / count)
    return tuple((plain / inverse.double()).tolist()), float(attention)


def _same(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return tensors[0]


def _alone(tensor: torch.Tensor) -> list[torch.Tensor]:
    return [tensor]


def _pairs(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads · D, ...] with halves [2, D/2] of every head interleaved to [D/2, 2]."""
    shape = tensor.shape
    return tensor.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).transpose(1, 2).reshape(shape)


def _halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Reverse of :func:`_pairs`."""
    shape = tensor.shape
    return tensor.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).transpose(1, 2).reshape(shape)


def entries(family: Family, shape: ModelShape, made: Architecture) -> Iterator[Entry]:
    """Every tensor of the file in its order, for a model of ``shape`` (the twin's, where it is one)."""
    offset = family.norm_offset

    def plain(name: str, source: str) -> Entry:
        return Entry(name, (source,), _same, _alone)

    def norm(name: str, source: str, scale: float = 1.0) -> Entry:
        if not offset and scale == 1.0:
            return plain(name, source)
        return Entry(
            name,
            (source,),
            lambda parts: (parts[0].float() + offset) * scale,
            lambda tensor: [tensor / scale - offset],
        )

    def rotated(name: str, source: str, heads: int, scale: float = 1.0) -> Entry:
        if not made.pairs and scale == 1.0:
            return plain(name, source)
        if not made.pairs:
            return Entry(name, (source,), lambda parts: parts[0].float() * scale, lambda tensor: [tensor / scale])
        return Entry(name, (source,), lambda parts: _pairs(parts[0], heads), lambda tensor: [_halves(tensor, heads)])

    yield plain("token_embd.weight", "model.embed_tokens.weight")
    for index, layer in enumerate(shape.layers):
        yield from _layer(family, shape, made, layer, f"model.layers.{index}.", f"blk.{index}.", plain, norm, rotated)
    yield norm("output_norm.weight", "model.norm.weight")
    if not shape.tie_word_embeddings:
        yield plain("output.weight", "lm_head.weight")


def _layer(
    family: Family,
    shape: ModelShape,
    made: Architecture,
    layer: LayerShape,
    source: str,
    block: str,
    plain: Callable[[str, str], Entry],
    norm: Callable[..., Entry],
    rotated: Callable[..., Entry],
) -> Iterator[Entry]:
    norms = family.block_norms
    names = (
        ("attn_norm", norms.pre_attention),
        ("post_attention_norm", norms.post_attention),
        ("ffn_norm", norms.pre_ffn),
        ("post_ffw_norm", norms.post_ffn),
    )
    for name, module in names:
        if module is not None:
            yield norm(f"{block}{name}.weight", f"{source}{module}.weight")
    attention = f"{source}self_attn."
    heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
    scale_q = made.query_scale if shape.qk_norm == "none" else 1.0
    if family.model_type == "phi3":
        yield plain(f"{block}attn_qkv.weight", f"{attention}qkv_proj.weight")
    elif made.fused:
        import torch

        rows = [heads * shape.head_dim, kv_heads * shape.head_dim, kv_heads * shape.head_dim]
        yield Entry(
            f"{block}attn_qkv.weight",
            tuple(f"{attention}{part}_proj.weight" for part in "qkv"),
            lambda parts: torch.cat(list(parts)),
            lambda tensor: list(tensor.split(rows)),
        )
    else:
        for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
            yield rotated(f"{block}attn_q.{kind}", f"{attention}q_proj.{kind}", heads, scale_q)
            yield rotated(f"{block}attn_k.{kind}", f"{attention}k_proj.{kind}", kv_heads)
            yield plain(f"{block}attn_v.{kind}", f"{attention}v_proj.{kind}")
    if shape.qk_norm != "none":
        scale = made.query_scale if shape.qk_norm == "head" else 1.0
        yield norm(f"{block}attn_q_norm.weight", f"{attention}q_norm.weight", scale)
        yield norm(f"{block}attn_k_norm.weight", f"{attention}k_norm.weight")
    yield plain(f"{block}attn_output.weight", f"{attention}o_proj.weight")
    if shape.o_bias:
        yield plain(f"{block}attn_output.bias", f"{attention}o_proj.bias")
    if family.model_type == "phi3":
        yield plain(f"{block}ffn_up.weight", f"{source}mlp.gate_up_proj.weight")
        yield plain(f"{block}ffn_down.weight", f"{source}mlp.down_proj.weight")
        return
    for name in ("gate", "up", "down"):
        for kind in ("weight", "bias") if shape.mlp_bias else ("weight",):
            yield plain(f"{block}ffn_{name}.{kind}", f"{source}mlp.{name}_proj.{kind}")
