from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.linear_decode import linear_decode
from prunekit.kernels.ops.utils.backend import using
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import guard_all


def case(rows: int, n: int, k: int, dtype: torch.dtype, parts: str, seed: int = 0) -> dict[str, object]:
    """Arguments of the op, each between NaNs; ``parts`` names the optional ones: bias, scale, norm, residual."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=g).to(dtype)

    weight = (
        torch.randint(-127, 128, (n, k), generator=g, dtype=torch.int8)
        if "scale" in parts
        else normal(n, k, dtype=dtype) / k**0.5
    )
    arguments = {
        "x": normal(rows, k, dtype=dtype),
        "weight": weight,
        "bias": normal(n) if "bias" in parts else None,
        "scale": 0.01 + 0.01 * torch.rand(n, generator=g) if "scale" in parts else None,
        "norm_weight": 1 + 0.3 * normal(k) if "norm" in parts else None,
        "eps": 1e-5,
        "residual": normal(rows, n, dtype=dtype) if "residual" in parts else None,
    }
    return guard_all(arguments)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 5))
@pytest.mark.parametrize("n", WIDTHS)
def test_any_width(n: int, rows: int, dtype: torch.dtype) -> None:
    arguments = case(rows, n, 96, dtype, "norm bias residual")
    assert_close(linear_decode(**arguments), reference.linear_decode(**arguments))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 2, 16))
@pytest.mark.parametrize("parts", ("", "norm", "bias residual", "norm scale bias residual"))
def test_parts(parts: str, rows: int, dtype: torch.dtype) -> None:
    arguments = case(rows, 37, 96, dtype, parts)
    assert_close(linear_decode(**arguments), reference.linear_decode(**arguments))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("k", WIDTHS)
@pytest.mark.parametrize("rows", (1, 3))
def test_inner_width(k: int, rows: int, dtype: torch.dtype) -> None:
    """Right for an inner axis of any width too, though slow on a GPU: layout never makes one."""
    arguments = case(rows, 24, k, dtype, "norm residual")
    assert_close(linear_decode(**arguments), reference.linear_decode(**arguments))


@pytest.mark.parametrize("backend", ("triton", "torch"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 5))
def test_softcap(rows: int, dtype: torch.dtype, backend: str) -> None:
    """Before the residual is added; of sums far beyond the cap too."""
    for size in (1.0, 30.0):
        arguments = {**case(rows, 37, 96, dtype, "norm bias residual"), "softcap": 3.0}
        arguments["norm_weight"] = arguments["norm_weight"] * size  # type: ignore[operator]
        with using(backend):  # type: ignore[arg-type]
            assert_close(linear_decode(**arguments), reference.linear_decode(**arguments))


@pytest.mark.parametrize("parts", ("", "norm scale bias residual"))
def test_fallback(parts: str) -> None:
    arguments = case(3, 37, 96, torch.float32, parts)
    with using("torch"):
        assert_close(linear_decode(**arguments), reference.linear_decode(**arguments))


@pytest.mark.parametrize("parts", ("", "norm scale bias residual"))
@pytest.mark.parametrize("rows", (1, 4))
def test_opcheck(rows: int, parts: str) -> None:
    torch.library.opcheck(linear_decode, (), {**case(rows, 37, 32, torch.float32, parts), "softcap": 2.0})
