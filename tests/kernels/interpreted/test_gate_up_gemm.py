from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.mlp.gate_up_gemm import TILES, default_tile, gate_up_gemm, launches
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.dispatch import choosing
from prunekit.kernels.ops.utils.launch import run
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import assert_guard_intact, guarded


def case(rows: int, width: int, hidden: int, dtype: torch.dtype, bias: bool) -> dict[str, object]:
    """Arguments of the op; every tensor lies between NaNs."""
    g = torch.Generator().manual_seed(rows + width + hidden)
    return {
        "x": guarded(torch.randn(rows, hidden, generator=g).to(dtype)),
        "gate_up": guarded((torch.randn(2, width, hidden, generator=g) / hidden**0.5).to(dtype)),
        "activation": "silu" if width % 2 else "gelu_tanh",
        "bias": guarded(torch.randn(2, width, generator=g)) if bias else None,
    }


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("width", WIDTHS)
def test_reference(width: int, dtype: torch.dtype) -> None:
    arguments = case(17, width, 80, dtype, bias=width % 2 == 0)
    assert_close(gate_up_gemm(**arguments), reference.gate_up_gemm(**arguments))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("rows", (1, 37, 300))
def test_tiles(rows: int, tile: str) -> None:
    """More rows of tiles than a group, more columns than one, and edges on both sides."""
    arguments = case(rows if tile != "small" else min(rows, 290), 144, 96, torch.float32, bias=True)
    with choosing(gate_up_tile=tile):
        assert_close(gate_up_gemm(**arguments), reference.gate_up_gemm(**arguments))


@pytest.mark.parametrize("hidden", WIDTHS)
def test_inner_width(hidden: int) -> None:
    """Right for an inner axis of any width too, though slow on a GPU."""
    arguments = case(5, 32, hidden, torch.float32, bias=False)
    assert_close(gate_up_gemm(**arguments), reference.gate_up_gemm(**arguments))


def test_nothing_is_written_around() -> None:
    arguments = case(37, 48, 32, torch.float32, bias=True)
    out = guarded(torch.empty(37, 48))
    run(launches(**arguments, out=out))
    assert_guard_intact(out)


def test_fallback() -> None:
    arguments = case(20, 37, 96, torch.float32, bias=True)
    with using("torch"):
        assert_close(gate_up_gemm(**arguments), reference.gate_up_gemm(**arguments))


@pytest.mark.parametrize("bias", (False, True))
def test_opcheck(bias: bool) -> None:
    torch.library.opcheck(gate_up_gemm, (), case(18, 32, 32, torch.float32, bias))


def test_default_tile() -> None:
    """Large tiles only where there are enough of them for the chip."""
    assert default_tile(20, 14336, 132) == "small"
    assert default_tile(64, 1024, 132) == "small"
    assert default_tile(512, 1024, 132) == "medium"
    assert default_tile(2048, 1024, 132) == "large"
    assert default_tile(128, 14336, 132) == "large"
    assert default_tile(64, 14336, 132) == "medium"
