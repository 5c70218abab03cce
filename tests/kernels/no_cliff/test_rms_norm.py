from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.rms_norm import launches
from prunekit.kernels.ops.utils.layout import padded
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


@every_gpu
@pytest.mark.parametrize("sums, dtype", (("", torch.float16), ("before", torch.bfloat16), ("after", torch.float16)))
def test_any_width(sums: str, dtype: torch.dtype, arch: int) -> None:
    """Any number of rows; hidden sizes aren't pruned, and are multiples of 16 in every model."""
    for width in WIDTHS:
        shape = (width, padded(width))
        x = meta(*shape, dtype=dtype)
        (launch,) = launches(
            x,
            meta(shape[1], dtype=torch.float32),
            1e-5,
            meta(*shape, dtype=dtype),
            before=x if sums == "before" else None,
            total=x if sums == "before" else None,
            after=x if sums == "after" else None,
        )
        assert check(launch, arch).narrow_loads_anywhere == 0


@every_gpu
@pytest.mark.parametrize("hidden", (4096, 16384))
def test_hidden_sizes_of_models(hidden: int, arch: int) -> None:
    x = meta(300, hidden)
    (launch,) = launches(x, meta(hidden, dtype=torch.float32), 1e-5, x, before=x, total=x)
    assert check(launch, arch).narrow_loads_anywhere == 0
