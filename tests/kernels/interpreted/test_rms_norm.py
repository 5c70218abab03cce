from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.rms_norm import add_rms_norm, launches, rms_norm, rms_norm_add
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.dispatch import choosing
from prunekit.kernels.ops.utils.launch import run
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import assert_guard_intact, guarded

EPS = 1e-5


def case(rows: int, hidden: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, residual, weight; each between NaNs."""
    g = torch.Generator().manual_seed(rows + hidden)
    x, residual = (torch.randn(rows, hidden, generator=g).to(dtype) for _ in range(2))
    return guarded(3 * x), guarded(residual), guarded(1 + 0.3 * torch.randn(hidden, generator=g))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("rows", (1, 5, 37))
@pytest.mark.parametrize("hidden", WIDTHS)
def test_reference(hidden: int, rows: int, dtype: torch.dtype) -> None:
    x, residual, weight = case(rows, hidden, dtype)
    assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
    assert_close(rms_norm_add(x, weight, EPS, residual), reference.rms_norm_add(x, weight, EPS, residual))
    for out, expected in zip(
        add_rms_norm(x, residual, weight, EPS), reference.add_rms_norm(x, residual, weight, EPS), strict=True
    ):
        assert_close(out, expected)


def test_the_norm_is_of_the_rounded_sum() -> None:
    """As Hugging Face computes it: what the next layer reads is what was normalised."""
    x, residual, weight = case(4, 96, torch.float16)
    out, total = add_rms_norm(x, residual, weight, EPS)
    assert torch.equal(total, x + residual)
    assert torch.equal(out, rms_norm(total, weight, EPS))


def test_nothing_is_written_around() -> None:
    x, residual, weight = case(3, 37, torch.float32)
    out, total = guarded(torch.empty_like(x)), guarded(torch.empty_like(x))
    run(launches(x, weight, EPS, out, before=residual, total=total))
    assert_guard_intact(out)
    assert_guard_intact(total)


def test_a_view_with_gaps_is_read_right() -> None:
    x, residual, weight = case(6, 64, torch.float32)
    assert_close(rms_norm(x[::2], weight, EPS), reference.rms_norm(x[::2], weight, EPS))
    out, _ = add_rms_norm(x[::2], residual[1::2], weight, EPS)
    assert_close(out, reference.add_rms_norm(x[::2], residual[1::2], weight, EPS)[0])


def test_fallback() -> None:
    x, residual, weight = case(5, 96, torch.float32)
    with using("torch"):
        assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
        assert_close(rms_norm_add(x, weight, EPS, residual), reference.rms_norm_add(x, weight, EPS, residual))
        assert_close(add_rms_norm(x, residual, weight, EPS)[0], reference.add_rms_norm(x, residual, weight, EPS)[0])


def test_pytorch_where_the_table_names_it() -> None:
    x, residual, weight = case(3, 64, torch.float32)
    with choosing(rms_norm="torch", add_rms_norm="torch", rms_norm_add="torch"):
        assert_close(rms_norm(x, weight, EPS), reference.rms_norm(x, weight, EPS))
        assert_close(rms_norm_add(x, weight, EPS, residual), reference.rms_norm_add(x, weight, EPS, residual))
        assert_close(add_rms_norm(x, residual, weight, EPS)[0], reference.add_rms_norm(x, residual, weight, EPS)[0])


def test_opcheck() -> None:
    x, residual, weight = case(2, 32, torch.float32)
    torch.library.opcheck(rms_norm, (x, weight, EPS))
    torch.library.opcheck(add_rms_norm, (x, residual, weight, EPS))
    torch.library.opcheck(rms_norm_add, (x, weight, EPS, residual))
