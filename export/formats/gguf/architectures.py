"""Which of llama.cpp's architectures computes a model, at which widths, and under which names it wants the tensors.

Legend: H query heads, K KV heads, D head_dim, E hidden size, F FFN channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.checkpoint.layout import widest
from prunekit.errors import PrunekitError
from prunekit.export.formats.gguf.rope import Rotation, refusal, rotation_of
from prunekit.models.families import Family
from prunekit.models.source import Source
from prunekit.plan import whole_plan
from prunekit.plan.shape import LayerShape, ModelShape

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
ARCHITECTURES = (*dict.fromkeys(_STOCK.values()), DECI, OPENELM)
# What deci computes: no norms but the two before attention and FFN, SwiGLU, every channel of a head rotated.
_LIKE_LLAMA = frozenset({"llama", "mistral", "qwen2", "phi3"})
# These rotate neighbouring channels, where transformers rotates halves: rows of q and k have to change places.
_PAIRS = frozenset({"llama", DECI, "smollm3"})
# These read frequencies from a tensor, with which every one can be set on its own.
_FREE_FREQUENCIES = frozenset({"llama", DECI, "phi3"})
# q_proj must be square in these.
_SQUARE = frozenset({"qwen2", "phi3", "olmo2"})
WINDOWED = frozenset({"gemma2", "gemma3"})
_GELU = frozenset({"gemma2", "gemma3_text"})
MAX_LAYERS = 512
# llama.cpp takes the 27B models' own attention scale where it sees their number of layers.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}


@dataclass(frozen=True)
class Architecture:
    """How a model is written. ``shape`` is the file's: the model's own, or (``twin``) with layers padded with zeros
    until all are alike. ``query_scale`` makes up for another attention scale than the model's."""

    name: str
    shape: ModelShape
    twin: bool = False
    query_scale: float = 1.0

    @property
    def pairs(self) -> bool:
        """q and k rows change places."""
        return self.name in _PAIRS


@dataclass(frozen=True)
class Entry:
    """One tensor of the file, and the checkpoint's that it is made of (padded, for a twin). ``split`` undoes ``make``;
    of a part that several entries name each holds a run of rows, in their order."""

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
    stock = _STOCK[kind]
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
    stock = _STOCK[kind]
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


def _rows(begin: int, end: int) -> Callable[[Sequence[torch.Tensor]], torch.Tensor]:
    return lambda parts: parts[0][begin:end]


def entries(family: Family, made: Architecture) -> Iterator[Entry]:
    """Every tensor of the file in its order."""
    yield _plain("token_embd.weight", "model.embed_tokens.weight")
    for index, layer in enumerate(made.shape.layers):
        source, block = f"model.layers.{index}.", f"blk.{index}."
        norms = family.block_norms
        for name, module in (
            ("attn_norm", norms.pre_attention),
            ("post_attention_norm", norms.post_attention),
            ("ffn_norm", norms.pre_ffn),
            ("post_ffw_norm", norms.post_ffn),
        ):
            if module is not None:
                yield _norm(family, f"{block}{name}.weight", f"{source}{module}.weight")
        yield from _attention(family, made, layer, f"{source}self_attn.", block)
        yield from _ffn(family, made, layer, f"{source}mlp.", block)
    yield _norm(family, "output_norm.weight", "model.norm.weight")
    if not made.shape.tie_word_embeddings:
        yield _plain("output.weight", "lm_head.weight")


def _plain(name: str, source: str) -> Entry:
    return Entry(name, (source,), _same, _alone)


def _norm(family: Family, name: str, source: str, scale: float = 1.0) -> Entry:
    offset = family.norm_offset
    if not offset and scale == 1.0:
        return _plain(name, source)
    return Entry(
        name,
        (source,),
        lambda parts: (parts[0].float() + offset) * scale,
        lambda tensor: [tensor / scale - offset],
    )


def _rotated(made: Architecture, name: str, source: str, heads: int, scale: float = 1.0) -> Entry:
    if made.pairs:
        return Entry(name, (source,), lambda parts: _pairs(parts[0], heads), lambda tensor: [_halves(tensor, heads)])
    if scale != 1.0:
        return Entry(name, (source,), lambda parts: parts[0].float() * scale, lambda tensor: [tensor / scale])
    return _plain(name, source)


def _attention(family: Family, made: Architecture, layer: LayerShape, source: str, block: str) -> Iterator[Entry]:
    shape = made.shape
    heads, kv_heads = layer.num_attention_heads, layer.num_key_value_heads
    query, kv = heads * shape.head_dim, kv_heads * shape.head_dim
    if family.model_type == "phi3" and made.name == DECI:
        name = f"{source}qkv_proj.weight"
        for letter, begin, end, turns in (("q", 0, query, heads), ("k", query, query + kv, kv_heads)):
            rows = _rows(begin, end)
            yield Entry(
                f"{block}attn_{letter}.weight",
                (name,),
                lambda parts, rows=rows, turns=turns: _pairs(rows(parts), turns),  # type: ignore[misc]
                lambda tensor, turns=turns: [_halves(tensor, turns)],  # type: ignore[misc]
            )
        yield Entry(f"{block}attn_v.weight", (name,), _rows(query + kv, query + 2 * kv), _alone)
    elif family.model_type == "phi3":
        yield _plain(f"{block}attn_qkv.weight", f"{source}qkv_proj.weight")
    elif made.name == OPENELM:
        import torch

        yield Entry(
            f"{block}attn_qkv.weight",
            tuple(f"{source}{part}_proj.weight" for part in "qkv"),
            lambda parts: torch.cat(list(parts)),
            lambda tensor: list(tensor.split([query, kv, kv])),
        )
    else:
        # Where queries are normed, the norm's weight takes the scale: the norm undoes one of the projection.
        scale = made.query_scale if shape.qk_norm == "none" else 1.0
        for kind in ("weight", "bias") if shape.qkv_bias else ("weight",):
            yield _rotated(made, f"{block}attn_q.{kind}", f"{source}q_proj.{kind}", heads, scale)
            yield _rotated(made, f"{block}attn_k.{kind}", f"{source}k_proj.{kind}", kv_heads)
            yield _plain(f"{block}attn_v.{kind}", f"{source}v_proj.{kind}")
    if shape.qk_norm != "none":
        yield _norm(family, f"{block}attn_q_norm.weight", f"{source}q_norm.weight", made.query_scale)
        yield _norm(family, f"{block}attn_k_norm.weight", f"{source}k_norm.weight")
    for kind in ("weight", "bias") if shape.o_bias else ("weight",):
        yield _plain(f"{block}attn_output.{kind}", f"{source}o_proj.{kind}")


def _ffn(family: Family, made: Architecture, layer: LayerShape, source: str, block: str) -> Iterator[Entry]:
    if family.model_type == "phi3":
        name, width = f"{source}gate_up_proj.weight", layer.intermediate_size
        if made.name == DECI:
            yield Entry(f"{block}ffn_gate.weight", (name,), _rows(0, width), _alone)
            yield Entry(f"{block}ffn_up.weight", (name,), _rows(width, 2 * width), _alone)
        else:
            yield _plain(f"{block}ffn_up.weight", name)
        yield _plain(f"{block}ffn_down.weight", f"{source}down_proj.weight")
        return
    for part in ("gate", "up", "down"):
        for kind in ("weight", "bias") if made.shape.mlp_bias else ("weight",):
            yield _plain(f"{block}ffn_{part}.{kind}", f"{source}{part}_proj.{kind}")
