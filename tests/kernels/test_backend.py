"""Where Triton can't run, and why: what sends an op to PyTorch."""

from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.utils import backend as support
from prunekit.kernels.ops.utils.backend import why_not_triton

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HALF, BFLOAT = torch.float16, torch.bfloat16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As on a machine with an A100 and a new Triton."""
    monkeypatch.setattr(support, "INTERPRETING", False)
    monkeypatch.setattr(support, "HAS_TRITON", True)
    monkeypatch.setattr(support, "_triton_version", lambda: (3, 9))
    monkeypatch.setattr(support, "_capability", lambda index: (8, 0))
    return monkeypatch


@pytest.mark.parametrize(
    "capability, dtype, dot, reason",
    (
        ((9, 0), BFLOAT, True, None),
        ((8, 0), BFLOAT, True, None),
        ((7, 5), HALF, False, None),
        ((7, 5), HALF, True, "no tensor cores"),
        ((7, 5), BFLOAT, False, "no bfloat16"),
        ((7, 0), HALF, False, "below 7.5"),
        ((9, 0), torch.float64, False, "no kernels for float64"),
    ),
)
def test_gpus(
    capability: tuple[int, int], dtype: torch.dtype, dot: bool, reason: str | None, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setattr(support, "_capability", lambda index: capability)
    said = why_not_triton(GPU, dtype, dot=dot)
    assert said is None if reason is None else reason in (said or "")


def test_other_machines(gpu: pytest.MonkeyPatch) -> None:
    assert "the model is on cpu" in (why_not_triton(CPU, HALF) or "")
    with gpu.context() as patch:
        patch.setattr(torch.version, "hip", "6.4")
        assert "AMD" in (why_not_triton(GPU, HALF) or "")
    with gpu.context() as patch:
        patch.setattr(support, "_triton_version", lambda: (3, 5))
        assert "Triton 3.5 is older than 3.6" in (why_not_triton(GPU, HALF) or "")
    gpu.setattr(support, "HAS_TRITON", False)
    assert "not installed" in (why_not_triton(GPU, HALF) or "")


def test_the_installed_triton_is_new_enough() -> None:
    pytest.importorskip("triton")
    assert support._triton_version() >= support.OLDEST_TRITON
