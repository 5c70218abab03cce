from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.attention import qkv_rope as module
from prunekit.kernels.ops.attention.qkv_rope import launches, qkv_rope
from prunekit.kernels.ops.utils._triton import cdiv
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.launch import Launch
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import guard_all

NAN = float("nan")


def case(
    heads: tuple[int, int],
    rows: int,
    parts: str = "",
    head_dim: int = 16,
    rotary: int | None = None,
    hidden: int = 96,
    dtype: torch.dtype = torch.float32,
) -> dict[str, object]:
    """Arguments of the op. ``parts`` names which optional ones are there: bias, scale, norm; ``rotary`` channels turn
    (None: all). Caches hold NaN, and every other tensor lies between NaNs."""
    g = torch.Generator().manual_seed(0)
    num_heads, num_kv = heads
    n = (num_heads + 2 * num_kv) * head_dim
    half = (head_dim if rotary is None else rotary) // 2
    angles = 6.3 * torch.rand(11, half, generator=g)
    # Tokens before heads, and a row that no token goes to: all strides are unlike those of a contiguous cache.
    arena = torch.full((2, rows + 1, 11, num_kv, head_dim), NAN, dtype=dtype).transpose(2, 3)
    if "scale" in parts:
        weight = torch.randint(-127, 128, (n, hidden), generator=g, dtype=torch.int8)
    else:
        weight = (torch.randn(n, hidden, generator=g) / hidden**0.5).to(dtype)
    arguments = {
        "x": torch.randn(rows, hidden, generator=g).to(dtype),
        "weight": weight,
        "num_heads": num_heads,
        "positions": torch.randint(0, 11, (rows,), generator=g, dtype=torch.int32),
        "cos": angles.cos() if half else None,
        "sin": angles.sin() if half else None,
        "bias": torch.randn(n, generator=g) if "bias" in parts else None,
        "scale": 0.001 + 0.001 * torch.rand(n, generator=g) if "scale" in parts else None,
        "norm_weight": 1 + 0.3 * torch.randn(hidden, generator=g) if "norm" in parts else None,
        "eps": 1e-5,
    }
    return {**guard_all(arguments), "k_cache": arena[0], "v_cache": arena[1]}


def check(arguments: dict[str, object]) -> None:
    """Queries, keys and values are right, and no other place of the caches was written."""
    double = {name: arguments[name].double() for name in ("k_cache", "v_cache")}  # type: ignore[attr-defined]
    expected = reference.qkv_rope(**{**arguments, **double})
    assert_close(qkv_rope(**arguments), expected)
    for name, cache in double.items():
        written = ~cache.isnan()
        assert torch.equal(~arguments[name].isnan(), written)  # type: ignore[attr-defined]
        assert_close(arguments[name][written], cache[written])  # type: ignore[index]


ALL = "norm scale bias"


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows, parts", ((1, ""), (1, ALL), (3, "norm"), (16, ALL)))
def test_parts(rows: int, parts: str, dtype: torch.dtype) -> None:
    check(case((9, 3), rows, parts, dtype=dtype))


@pytest.mark.parametrize("rows", (1, 2))
@pytest.mark.parametrize("heads", ((8, 8), (4, 1), (32, 2), (13, 5), (1, 1)))
def test_heads(heads: tuple[int, int], rows: int) -> None:
    check(case(heads, rows, "norm"))


@pytest.mark.parametrize("rows", (1, 2))
@pytest.mark.parametrize("head_dim, rotary", ((16, 8), (16, 0), (8, 8), (20, 12), (64, 64), (80, 32), (96, 80)))
def test_channels(head_dim: int, rotary: int, rows: int) -> None:
    """Partial rotation, none, and head sizes that no block divides."""
    check(case((2, 1), rows, "bias", head_dim, rotary))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 3))
@pytest.mark.parametrize("hidden", WIDTHS)
def test_inner_width(hidden: int, rows: int, dtype: torch.dtype) -> None:
    check(case((2, 1), rows, "norm", hidden=hidden, dtype=dtype))


@pytest.mark.parametrize("rows", (1, 2))
def test_wide_layers(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks as they are for thousands of output features, without so many."""

    def wide(*arguments: Any) -> list[Launch]:
        (made,) = launches(*arguments)
        block = 2 * made.args["BLOCK_P"]
        grid = (made.grid[0], cdiv(made.args["head_dim"] // 2, block))
        return [replace(made, grid=grid, args={**made.args, "BLOCK_P": block})]

    monkeypatch.setattr(module, "launches", wide)
    for rotary in (20, 36):
        check(case((3, 2), rows, "bias", 36, rotary))


@pytest.mark.parametrize("rows", (1, 5, 20))
@pytest.mark.parametrize("rotary", (16, 8, 0))
@pytest.mark.parametrize("parts", ("", ALL))
def test_fallback(parts: str, rotary: int, rows: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        with using("torch"):
            check(case((9, 3), rows, parts, rotary=rotary, dtype=dtype))


@pytest.mark.parametrize("rows, parts", ((1, ""), (4, ALL)))
def test_opcheck(rows: int, parts: str) -> None:
    arguments = case((3, 1), rows, parts)
    arguments["k_cache"], arguments["v_cache"] = torch.zeros(rows, 1, 11, 16), torch.zeros(rows, 1, 11, 16)
    torch.library.opcheck(qkv_rope, (), arguments)
