"""Under which names llama.cpp's architectures want the tensors of a model, and what of the checkpoint each is made of.

Legend: D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prunekit.models.families import Family
from prunekit.plan.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    import torch

# Every layer brings its own head counts and FFN width only in these two.
DECI, OPENELM = "deci", "openelm"
# The architecture of each model_type, where all layers are alike.
STOCK = {
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
ARCHITECTURES = (*dict.fromkeys(STOCK.values()), DECI, OPENELM)
# These rotate neighbouring channels, where transformers rotates halves: rows of q and k have to change places.
_PAIRS = frozenset({"llama", DECI, "smollm3"})
MAX_LAYERS = 512


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
