"""How close is close enough: relative RMS error against float64, by dtype."""

from __future__ import annotations

import torch

from prunekit.kernels.testing.tolerances import TOLERANCE

WIDTHS = (1013, 1344, 37, 1024, 16, 17)


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − expected‖ / ‖expected‖; NaN anywhere gives NaN."""
    return ((out.double() - expected.double()).norm() / expected.double().norm()).item()


def assert_close(out: torch.Tensor, expected: torch.Tensor) -> None:
    """Within the tolerance of ``out``'s dtype; NaN never is."""
    assert out.shape == expected.shape, (out.shape, expected.shape)
    error = relative_error(out, expected)
    assert error <= TOLERANCE[out.dtype], f"relative error {error:.2e} in {out.dtype}"
