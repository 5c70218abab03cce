from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.gated_act import gated_act, launches
from prunekit.kernels.ops.utils.activation import ACTIVATIONS
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.launch import run
from prunekit.kernels.ops.utils.layout import padded
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import assert_guard_intact, guarded


def case(rows: int, width: int, dtype: torch.dtype, bias: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    g = torch.Generator().manual_seed(rows + width)
    gate_up = guarded((3 * torch.randn(rows, 2 * width, generator=g)).to(dtype))
    return gate_up, guarded(torch.randn(2 * width, generator=g)) if bias else None


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", WIDTHS)
def test_reference(width: int, activation: str, bias: bool, dtype: torch.dtype) -> None:
    """The padded width, as the layout makes it, and the logical one, which is only slower."""
    for w in sorted({width, padded(width)}):
        gate_up, biases = case(3, w, dtype, bias)
        assert_close(gated_act(gate_up, activation, biases), reference.gated_act(gate_up, activation, biases))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_gates(activation: str) -> None:
    """Where exp leaves float32's range, the result is 0 or gate · up and never NaN."""
    gate = torch.tensor([[-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, -3.0]])
    gate_up = torch.cat([gate, torch.full_like(gate, 2.0)], dim=1)
    assert_close(gated_act(gate_up, activation), reference.gated_act(gate_up, activation))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_pads_of_zeros_stay_zeros(activation: str) -> None:
    gate_up, _ = case(4, 48, torch.float16, False)
    gate_up.view(4, 2, 48)[..., 37:] = 0
    assert (gated_act(gate_up, activation)[:, 37:] == 0).all()


def test_nothing_is_written_around() -> None:
    gate_up, bias = case(3, 37, torch.float32, True)
    out = guarded(torch.empty(3, 37))
    run(launches(gate_up, "silu", out, bias))
    assert_guard_intact(out)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_fallback(activation: str) -> None:
    gate_up, bias = case(5, 37, torch.float32, True)
    with using("torch"):
        assert_close(gated_act(gate_up, activation, bias), reference.gated_act(gate_up, activation, bias))


def test_opcheck() -> None:
    for bias in (False, True):
        torch.library.opcheck(
            gated_act, (*case(2, 32, torch.float32, bias)[:1], "silu", case(2, 32, torch.float32, bias)[1])
        )


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="relu"):
        gated_act(torch.zeros(2, 32), "relu")
