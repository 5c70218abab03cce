"""Arguments with which the ops around attention are checked."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.common.tensors import Data
from benchmarks.ops.checks import Arguments, Check, Sizes, label, linear


def caches(data: Data, kv: int, head_dim: int, places: int, lengths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """With one row more than there are sequences, and NaN where a sequence has no token yet."""
    filled = [*lengths, 0]
    return {name: data.cache(len(filled), kv, places, head_dim, filled) for name in ("k_cache", "v_cache")}


def angles(data: Data, places: int, head_dim: int, rotated: str) -> Arguments:
    """cos and sin for all channels of a head, for half of them, or for none."""
    if rotated == "none":
        return {"cos": None, "sin": None}
    cos, sin = data.rope(places, head_dim if rotated == "all" else head_dim // 2)
    return {"cos": cos, "sin": sin}


def attention(
    data: Data, heads: int, kv: int, head_dim: int, lengths: tuple[int, ...], window: int, softcap: float
) -> Arguments:
    return {
        "q": data.normal(len(lengths), heads, head_dim),
        **caches(data, kv, head_dim, max(lengths) + 3, lengths),
        "lengths": data.ints(list(lengths)),
        "scale": head_dim**-0.5,
        "window": window,
        "softcap": softcap,
    }


def qkv_rope(
    data: Data, heads: int, kv: int, head_dim: int, hidden: int, rows: int, int8: bool, full: bool, rotated: str
) -> Arguments:
    places = 24
    projection = linear(data, (heads + 2 * kv) * head_dim, hidden, rows, int8, full)
    del projection["residual"]
    return {
        **projection,
        "num_heads": heads,
        **caches(data, kv, head_dim, places, (0,) * rows),
        "positions": data.ints([7 * row % places for row in range(rows)]),
        **angles(data, places, head_dim, rotated),
    }


def rope_cache(data: Data, heads: int, kv: int, head_dim: int, tokens: int, rotated: str, norm_over: str) -> Arguments:
    """Two prompts, one after the other, into the first and the last row of the caches."""
    first = tokens // 2
    channels = {"none": None, "head": (head_dim, head_dim), "all": (heads * head_dim, kv * head_dim)}[norm_over]
    return {
        "qkv": data.normal(tokens, (heads + 2 * kv) * head_dim),
        "num_heads": heads,
        **caches(data, kv, head_dim, tokens + 3, (0, 0)),
        "positions": data.ints([*range(1, first + 1), *range(tokens - first)]),
        "rows": data.ints([0] * first + [2] * (tokens - first)),
        **angles(data, tokens + 3, head_dim, rotated),
        "q_norm": data.norm(channels[0]) if channels else None,
        "k_norm": data.norm(channels[1]) if channels else None,
        "eps": 1e-5,
    }


def attention_checks(data: Data, sizes: Sizes) -> Iterator[Check]:
    """The ops around attention: at every head layout, each option at least once."""
    longest = max(sizes.lengths)
    limits = ((0, 0.0), (longest // 3, 0.0), (0, 20.0))
    for head_dim in sizes.head_dims:
        for heads, kv in sizes.heads:
            layout_text = f"{heads} and {kv} heads of {head_dim}"
            for window, softcap in limits:
                text = label(layout_text, window and f"window {window}", softcap and f"softcap {softcap:g}")
                make = partial(attention, data, heads, kv, head_dim, sizes.lengths, window, softcap)
                yield Check("attention_decode", text, make)
            for index, rows in enumerate(sizes.rows):
                for int8 in (False, True):
                    rotated = ("all", "half", "none")[(index + int8) % 3]
                    full = int8 != bool(index % 2)
                    make = partial(qkv_rope, data, heads, kv, head_dim, sizes.hidden, rows, int8, full, rotated)
                    text = f"{rows}x{sizes.hidden} to {layout_text}, rope {rotated}"
                    yield Check("qkv_rope", label(text, int8 and "int8", full and "all options"), make)
            for rotated, norm_over in (("all", "none"), ("half", "head"), ("all", "all"), ("none", "none")):
                make = partial(rope_cache, data, heads, kv, head_dim, sizes.tokens, rotated, norm_over)
                text = f"{sizes.tokens} tokens, {layout_text}, rope {rotated}, norm {norm_over}"
                yield Check("rope_cache", text, make)
