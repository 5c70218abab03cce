from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunekit.kernels.ops.mlp.decode import launches
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.testing.aot import MAX_SHARED, MachineCode, compile_launch, signature
from tests.support.gate import WIDTHS, check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler

# A 16-bit FFN and an int8 one, for both dtypes and both kinds of hidden size: up to 1024 and above.
CASES = (
    (2048, torch.bfloat16, None),
    (576, torch.float16, None),
    (576, torch.bfloat16, torch.int8),
    (2048, torch.float16, torch.int8),
)


FIRST_CASE = {80: 0, 90: 1, 86: 2, 87: 3, 89: 1}


def plan(rows: int, width: int, hidden: int, dtype: torch.dtype, weight: torch.dtype | None = None) -> list[Launch]:
    """The launches for an FFN of ``width`` neurons, with every option; scales in place of biases for int8."""
    small, neurons, weight = torch.float32, padded(width), weight or dtype
    scaled = weight == torch.int8
    made = launches(
        x=meta(rows, hidden, dtype=dtype),
        gate_up=meta(2, neurons, hidden, dtype=weight),
        down=meta(hidden, neurons, dtype=weight),
        activation="silu",
        out=meta(rows, hidden, dtype=dtype),
        norm_weight=meta(hidden, dtype=small),
        eps=1e-5,
        gate_up_bias=None if scaled else meta(2, neurons, dtype=small),
        down_bias=meta(hidden, dtype=small),
        gate_up_scale=meta(2, neurons, dtype=small) if scaled else None,
        down_scale=meta(hidden, dtype=small) if scaled else None,
        residual=meta(rows, hidden, dtype=dtype),
    )
    return made[-2:]  # without the norm of several rows


def bytes_by_load(code: MachineCode) -> tuple[int, int]:
    """Bytes a thread loads from global memory per pass over the code: with 16-byte loads, and with narrower ones."""
    wide = narrow = 0
    for opcode, count in code.instructions.items():
        name, *parts = opcode.split(".")
        if name not in ("LDG", "LDGSTS"):
            continue
        size = next((int(part) // 8 for part in parts if part in ("64", "128")), 4)
        if size == 16:
            wide += 16 * count
        else:
            narrow += size * count
    return wide, narrow


@every_gpu
@pytest.mark.parametrize("rows", (1, 4, 16))
def test_any_width(rows: int, arch: int) -> None:
    # A kernel takes half a second: each case is compiled for every number of rows on one GPU at least, not on all.
    step = 2 if rows == 1 and arch in (80, 90) else 4
    turn = (FIRST_CASE[arch] + rows // 4) % step
    for width in WIDTHS:
        for hidden, dtype, weight in CASES[turn::step]:
            for launch in plan(rows, width, hidden, dtype, weight):
                code = check(launch, arch)
                wide, narrow = bytes_by_load(code)
                # One row's x, activations, scales and biases come a few bytes at a time. Were a weight matrix loaded
                # so too, it would outweigh what is left; of several rows, x is as much again and comes as weights do.
                assert narrow <= wide / (1 if rows == 1 else 2), code.instructions
                # One row's weights go to registers, all of a program's or one block ahead; tensor cores' through
                # shared memory, others on the way meanwhile.
                assert (code.async_copies > 0) == (rows > 1)


@pytest.mark.parametrize("rows", (1, 4, 16))
def test_a_few_compiles_serve_every_width(rows: int) -> None:
    """Widths are run-time integers. What differs: whether a row of down fits into a program."""
    made: dict[str, set[str]] = {}
    for width in range(16, 14400, 112):
        for launch in plan(rows, width, 4096, torch.bfloat16):
            made.setdefault(launch.kernel.__name__, set()).add(str(signature(launch)))
    assert all(len(signatures) <= 4 for signatures in made.values()), {name: len(s) for name, s in made.items()}


@pytest.mark.parametrize("rows", (1, 4))
def test_the_gate_sees_an_irregular_hidden_size(rows: int) -> None:
    """The width lies along rows, padded; of the hidden size the same kernels would fall off the cliff."""
    launch, _ = plan(rows, 1024, 2048, torch.bfloat16)
    wrong = compile_launch(replace(launch, args={**launch.args, "hidden": 2047}), 80)
    assert wrong.narrow_loads_anywhere > 0


@pytest.mark.parametrize("rows", (1, 16))
def test_float32_fits(rows: int) -> None:
    """Tiles of twice the bytes, in the shared memory of the smallest chip."""
    for launch in plan(rows, 1344, 2048, torch.float32):
        assert compile_launch(launch, 86).shared <= MAX_SHARED[86]
