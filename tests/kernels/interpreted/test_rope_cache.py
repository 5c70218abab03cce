from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.attention.rope_cache import rope_cache
from prunekit.kernels.ops.utils.backend import using
from tests.support.close import assert_close
from tests.support.guard import guard_all

NAN = float("nan")


def case(
    heads: tuple[int, int],
    head_dim: int = 16,
    rotary: int | None = None,
    norm: str = "",
    dtype: torch.dtype = torch.float32,
    places: tuple[tuple[int, int], ...] = ((0, 3), (2, 0), (0, 4), (1, 10)),
) -> dict[str, object]:
    """Arguments of the op. ``rotary`` channels turn (None: all); ``places`` are (cache row, position) of each token;
    ``norm`` is "head", "all" or "query" (of each head, of queries alone). Caches hold NaN, and every other tensor lies
    between NaNs."""
    g = torch.Generator().manual_seed(0)
    num_heads, num_kv = heads
    half = (head_dim if rotary is None else rotary) // 2
    angles = 6.3 * torch.rand(11, half, generator=g)
    # Tokens before heads, and a row that no token goes to: all strides are unlike those of a contiguous cache.
    arena = torch.full((2, 4, 11, num_kv, head_dim), NAN, dtype=dtype).transpose(2, 3)
    sizes = (1, 1) if norm in ("head", "query") else heads
    weights = [1 + 0.3 * torch.randn(size * head_dim, generator=g) for size in sizes] if norm else [None, None]
    arguments = {
        "qkv": torch.randn(len(places), (num_heads + 2 * num_kv) * head_dim, generator=g).to(dtype),
        "num_heads": num_heads,
        "positions": torch.tensor([position for _, position in places], dtype=torch.int32),
        "rows": torch.tensor([row for row, _ in places], dtype=torch.int32),
        "cos": angles.cos() if half else None,
        "sin": angles.sin() if half else None,
        "q_norm": weights[0],
        "k_norm": None if norm == "query" else weights[1],
        "eps": 1e-5,
    }
    return {**guard_all(arguments), "k_cache": arena[0], "v_cache": arena[1]}


def check(arguments: dict[str, object]) -> None:
    """Queries, keys and values are right, and no other place of the caches was written."""
    double = {name: arguments[name].double() for name in ("k_cache", "v_cache")}  # type: ignore[attr-defined]
    expected = reference.rope_cache(**{**arguments, **double})
    assert_close(rope_cache(**arguments), expected)
    for name, cache in double.items():
        written = ~cache.isnan()
        assert torch.equal(~arguments[name].isnan(), written)  # type: ignore[attr-defined]
        assert_close(arguments[name][written], cache[written])  # type: ignore[index]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("norm", ("", "head", "all", "query"))
@pytest.mark.parametrize("heads", ((9, 3), (8, 8), (4, 1), (32, 2), (1, 1), (37, 17)))
def test_heads(heads: tuple[int, int], norm: str, dtype: torch.dtype) -> None:
    check(case(heads, norm=norm, dtype=dtype))


@pytest.mark.parametrize("norm", ("", "head", "all"))
@pytest.mark.parametrize(
    "head_dim, rotary", ((16, 8), (16, 0), (8, 8), (64, 64), (80, 32), (96, 96), (128, 64), (256, 0))
)
def test_channels(head_dim: int, rotary: int, norm: str) -> None:
    """Partial rotation, none, and head sizes that are no powers of two."""
    check(case((5, 2), head_dim, rotary, norm, torch.float16))
    check(case((5, 2), head_dim, rotary, norm))


@pytest.mark.parametrize("norm", ("", "head", "all"))
@pytest.mark.parametrize("rotary", (16, 8, 0))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_fallback(dtype: torch.dtype, rotary: int, norm: str) -> None:
    with using("torch"):
        check(case((9, 3), 16, rotary, norm, dtype))
        check(case((4, 4), 16, rotary, norm, dtype, places=((0, 0),)))


@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_queries_are_a_copy(backend: str) -> None:
    """An op must not return a view of an input."""
    arguments = case((4, 2), rotary=0)
    with using(backend):  # type: ignore[arg-type]
        out = rope_cache(**arguments)
    assert out.is_contiguous()
    assert out.untyped_storage().data_ptr() != arguments["qkv"].untyped_storage().data_ptr()  # type: ignore[attr-defined]


@pytest.mark.parametrize("norm", ("", "all"))
def test_opcheck(norm: str) -> None:
    arguments = case((5, 2), norm=norm)
    arguments["k_cache"], arguments["v_cache"] = torch.zeros(4, 2, 11, 16), torch.zeros(4, 2, 11, 16)
    torch.library.opcheck(rope_cache, (), arguments)
