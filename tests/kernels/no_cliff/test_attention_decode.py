from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.attention.decode import launches
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.testing.aot import compile_launch
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


def plan(
    head_dim: int, dtype: torch.dtype, batch: int, capacity: int, *, window: int = 0, softcap: float = 0.0
) -> list[Launch]:
    """Three KV heads and nine query heads. Few sequences make small tiles, a short cache a single split."""
    cache = meta(batch + 1, 3, capacity, head_dim, dtype=dtype)
    return launches(
        q=meta(batch, 9, head_dim, dtype=dtype),
        k_cache=cache,
        v_cache=cache,
        lengths=meta(batch, dtype=torch.int32),
        out=meta(batch, 9, head_dim, dtype=dtype),
        scale=head_dim**-0.5,
        window=window,
        softcap=softcap,
    )


@every_gpu
@pytest.mark.parametrize("head_dim", (64, 96, 128, 256))
def test_any_head_dim(head_dim: int, arch: int) -> None:
    """Large and small tiles, several splits and one, in an irregular capacity; a window and softcap with one."""
    (attend,) = plan(head_dim, torch.bfloat16, 37, 4093)
    assert attend.args["BLOCK_S"] == {64: 64, 96: 64, 128: 64, 256: 32}[head_dim] and attend.grid[2] > 1
    check(attend, arch, gemm=True)
    (alone,) = plan(head_dim, torch.float16, 1, 13, window=100, softcap=50.0)
    check(alone, arch, gemm=True)


@every_gpu
def test_float32(arch: int) -> None:
    check(plan(128, torch.float32, 1, 1013)[0], arch, gemm=True)


@pytest.mark.parametrize("heads", (1, 4, 16))
@pytest.mark.parametrize("head_dim", (64, 80, 96, 128, 256))
def test_groups_of_any_size_leave_room(head_dim: int, heads: int) -> None:
    """Combining takes no more registers than attending, of which 168 a thread let three programs of four warps run."""
    cache = meta(1, 2, 8192, head_dim)
    q = meta(1, 2 * heads, head_dim)
    (launch,) = launches(q, cache, cache, meta(1, dtype=torch.int32), q, 0.1)
    assert check(launch, 90).registers <= 168


@every_gpu
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
def test_the_last_program_sees_all_that_was_stored(dtype: torch.dtype, arch: int) -> None:
    """The order of instructions that kernels/ops/attention/last_arriver.py relies on: all threads' stores, a barrier,
    release, the count, acquire, a barrier, loads that go past the L1 cache."""
    (launch,) = plan(64, dtype, 1, 2048)
    assert launch.grid[2] > 1
    opcodes = compile_launch(launch, arch).opcodes
    (count,) = (place for place, opcode in enumerate(opcodes) if opcode.startswith("ATOM"))
    assert opcodes[count].startswith("ATOMG.E.ADD.STRONG.GPU")
    before, after = list(opcodes[:count]), list(opcodes[count + 1 :])

    def last(start: str) -> int:
        return max(place for place, opcode in enumerate(before) if opcode.startswith(start))

    assert last("STG") < last("BAR.SYNC") < last("MEMBAR") and before[last("MEMBAR")].endswith(".GPU")
    loads = [place for place, opcode in enumerate(after) if opcode.startswith(("LDG", "LD."))]
    barrier = next(place for place, opcode in enumerate(after) if opcode.startswith("BAR.SYNC"))
    assert after.index("CCTL.IVALL") < barrier < loads[0]
    assert all(after[place].endswith("STRONG.GPU") for place in loads) and len(loads) >= 2
