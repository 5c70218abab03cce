"""The no-cliff gate: what machine code must look like, whatever the width."""

from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.utils._triton import HAS_TRITON, INTERPRETING
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.testing.aot import ARCHITECTURES, MAX_SHARED, MachineCode, compile_launch

WIDTHS = (1013, 1344, 37, 1024, 16, 17)
needs_compiler = pytest.mark.skipif(
    not HAS_TRITON or INTERPRETING, reason="needs Triton, in a process without TRITON_INTERPRET"
)
every_gpu = pytest.mark.parametrize("arch", ARCHITECTURES)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """A tensor without memory: enough to plan and compile a launch."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def check(launch: Launch, arch: int, *, gemm: bool = False) -> MachineCode:
    """Assert what every kernel owes: 16-byte loads, none of 1 or 2 bytes in a loop and fewer of them elsewhere, no
    spills, shared memory that the chip has; a GEMM also copies asynchronously."""
    code = compile_launch(launch, arch)
    assert code.narrow_loads == 0, {name: n for name, n in code.in_loops.items() if name.startswith("LDG")}
    assert code.wide_loads > 0, code.instructions
    assert code.narrow_loads_anywhere <= code.wide_loads, code.instructions
    assert code.spilled == 0, f"{code.spilled} bytes spilled, {code.registers} registers"
    assert code.shared <= MAX_SHARED[arch]
    if gemm:
        assert code.async_copies > 0, code.instructions
    return code
