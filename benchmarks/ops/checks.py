"""Arguments with which every op is checked: irregular widths, all options, NaN wherever nobody may read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.common.tensors import Data
from prunekit.kernels.ops.utils import layout

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """``rows`` of a decode step and ``many`` of a prompt; ``heads`` are pairs of (query heads, KV heads); ``lengths``
    the tokens in the cache of each sequence; ``tokens`` those of a prompt."""

    widths: tuple[int, ...]
    hidden: int
    rows: tuple[int, ...]
    many: tuple[int, ...]
    head_dims: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    lengths: tuple[int, ...]
    tokens: int


REAL = Sizes(
    widths=(1013, 1344, 37, 1024, 16, 17, 8009),
    hidden=2048,
    rows=(1, 2, 8, 16),
    many=(17, 300),
    head_dims=(64, 128),
    heads=((32, 8), (20, 5), (9, 3), (7, 1)),
    lengths=(1, 700, 2048, 37),
    tokens=45,
)
# Another hidden size, which no power of two divides; fewer of everything else.
NARROW = Sizes(
    widths=(1013, 37),
    hidden=576,
    rows=(1, 5),
    many=(33,),
    head_dims=(64,),
    heads=((9, 3), (6, 2)),
    lengths=(5, 130),
    tokens=12,
)
TINY = Sizes(
    widths=(37,),
    hidden=64,
    rows=(1, 3),
    many=(18,),
    head_dims=(16,),
    heads=((6, 3),),
    lengths=(1, 21),
    tokens=5,
)


@dataclass(frozen=True)
class Check:
    """One call of an op."""

    op: str
    label: str
    arguments: Callable[[], Arguments]


def label(*parts: str | bool | float | None) -> str:
    """What there is of ``parts``, separated by commas."""
    return ", ".join(part for part in parts if isinstance(part, str) and part)


def linear(data: Data, n: int, k: int, rows: int, int8: bool, full: bool) -> Arguments:
    """``full`` asks for every option."""
    return {
        "x": data.normal(rows, k),
        "weight": data.int8(n, k) if int8 else data.weight(n, k),
        "bias": data.small(n) if full else None,
        "scale": data.scale(n) if int8 else None,
        "norm_weight": data.norm(k) if full else None,
        "eps": 1e-5,
        "residual": data.normal(rows, n) if full else None,
    }


def ffn(data: Data, width: int, hidden: int, rows: int, int8: bool, full: bool, activation: str) -> Arguments:
    """Arguments of mlp and mlp_decode. Pads are zero in whatever is stored by neuron, as layout makes them."""
    stored = layout.padded(width)
    gate_up = data.int8(2, stored, hidden) if int8 else data.weight(2, stored, hidden)
    down = data.int8(hidden, stored) if int8 else data.normal(hidden, stored, scale=width**-0.5)
    bias = data.small(2, stored)
    gate_up[:, width:] = 0
    down[:, width:] = 0
    bias[:, width:] = 0
    return {
        "x": data.normal(rows, hidden),
        "gate_up": gate_up,
        "down": down,
        "activation": activation,
        "norm_weight": data.norm(hidden) if full else None,
        "eps": 1e-5,
        "gate_up_bias": bias if full else None,
        "down_bias": data.small(hidden) if full else None,
        "gate_up_scale": data.scale(2, stored) if int8 else None,
        "down_scale": data.scale(hidden) if int8 else None,
        "residual": data.normal(rows, hidden) if full else None,
    }


def gated(data: Data, width: int, rows: int, activation: str, bias: bool) -> Arguments:
    return {
        "gate_up": data.normal(rows, 2 * width),
        "activation": activation,
        "bias": data.small(2 * width) if bias else None,
    }


def norm(data: Data, hidden: int, rows: int, residual: bool) -> Arguments:
    arguments = {"x": data.normal(rows, hidden), "weight": data.norm(hidden), "eps": 1e-5}
    return arguments | ({"residual": data.normal(rows, hidden)} if residual else {})


def ffn_checks(data: Data, sizes: Sizes) -> Iterator[Check]:
    """The ops of linear layers and FFNs: at every width, each option at least once."""
    hidden = sizes.hidden
    prompts = (sizes.rows[0], *sizes.many)
    for index, width in enumerate(sizes.widths):
        activation = ("silu", "gelu_tanh")[index % 2]
        for rows in sizes.rows:
            for int8 in (False, True):
                full = int8 or rows > 1
                text = label(f"{rows}x{hidden} to {width}", int8 and "int8", full and "all options")
                yield Check("linear_decode", text, partial(linear, data, width, hidden, rows, int8, full))
        for op, all_rows in (("mlp_decode", sizes.rows), ("mlp", prompts)):
            for rows in all_rows:
                for int8 in (False, True):
                    full = int8 != (rows > 1)
                    make = partial(ffn, data, width, hidden, rows, int8, full, activation)
                    text = label(f"{rows}x{hidden}, {width} wide", activation, int8 and "int8", full and "all options")
                    yield Check(op, text, make)
        for rows in prompts:
            bias = index % 3 == 0
            stored = layout.padded(width)
            text = label(f"{rows} rows, {stored} wide", activation, bias and "bias")
            yield Check("gated_act", text, partial(gated, data, stored, rows, activation, bias))
    for rows in prompts:
        for op in ("rms_norm", "add_rms_norm", "rms_norm_add"):
            yield Check(op, f"{rows}x{hidden}", partial(norm, data, hidden, rows, op != "rms_norm"))
