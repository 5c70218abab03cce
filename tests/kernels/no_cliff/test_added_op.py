from __future__ import annotations

import torch

from prunekit.kernels.ops.utils.layout import padded
from tests.support.added_op import launches
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


@every_gpu
def test_any_width(arch: int) -> None:
    """The op of docs/architecture.md goes through the gate as the others do."""
    for width in map(padded, WIDTHS):
        x = meta(300, width, dtype=torch.bfloat16)
        (launch,) = launches(x, meta(width, dtype=torch.float32), meta(300, width, dtype=torch.bfloat16))
        assert check(launch, arch).narrow_loads_anywhere == 0
