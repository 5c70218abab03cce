"""Kernels that start while the one before still runs: what waiting adds to the machine code, and what it doesn't."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from prunekit.kernels.ops import linear_decode
from prunekit.kernels.ops.attention import decode as attention_decode
from prunekit.kernels.ops.attention import qkv_rope
from prunekit.kernels.ops.mlp import decode as mlp_decode
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.testing.aot import compile_launch, read_before_wait
from tests.support.gate import check, meta, needs_compiler

pytestmark = needs_compiler

HIDDEN, HEADS, KV, D = 2048, 32, 8, 64


def decode_step() -> list[Launch]:
    """Every launch of one layer at batch 1."""
    small = torch.float32
    x, q = meta(1, HIDDEN), meta(1, HEADS, D)
    cache = meta(1, KV, 2048, D)
    integers = meta(1, dtype=torch.int32)
    norm, table = meta(HIDDEN, dtype=small), meta(2048, D // 2, dtype=small)
    weight = meta((HEADS + 2 * KV) * D, HIDDEN)
    made = qkv_rope.launches(x, weight, HEADS, cache, cache, integers, q, table, table, norm_weight=norm, eps=1e-5)
    made += attention_decode.launches(q, cache, cache, integers, q, 0.125)
    made += linear_decode.launches(x, meta(HIDDEN, HIDDEN), x, residual=x)
    made += mlp_decode.launches(x, meta(2, 1024, HIDDEN), meta(HIDDEN, 1024), "silu", x, norm, 1e-5, residual=x)
    return made


def test_every_launch_of_a_layer_waits_once() -> None:
    launches = decode_step()
    assert len(launches) == 5
    for launch in launches:
        assert not launch.overlap and "launch_pdl" not in launch.options
        code = check(replace(launch, overlap=True), 90)
        assert code.instructions["ACQBULK"] == 1 and code.instructions["PREEXIT"] == 1
        assert "ACQBULK" not in check(launch, 90).instructions


# What no kernel of a step writes before its end: weights and what belongs to them, rotary tables, and the positions,
# which its last kernel writes for the next step: another graph, which begins when all of this one has ended.
CONSTANT = {"weight_ptr", "gate_up_ptr", "norm_ptr", "positions_ptr", "cos_ptr", "sin_ptr"}


@pytest.mark.parametrize("place", range(5))
def test_only_what_no_kernel_of_the_step_writes_is_read_before_the_wait(place: int) -> None:
    launch = decode_step()[place]
    early = read_before_wait(launch)
    assert early <= CONSTANT
    opcodes = compile_launch(replace(launch, overlap=True), 90).opcodes
    before = opcodes[: opcodes.index("ACQBULK")]
    assert not any(opcode.startswith(("STG", "UTMA", "LD.")) for opcode in before), before
    loads = sum(opcode.startswith("LDG") for opcode in before)
    # The compiler keeps early loads early, and moves no other one above the wait.
    assert (loads > 0) == bool(early), before
    assert bool(early) == (launch.kernel.__name__ in ("_qkv_rope_kernel", "_linear_decode_kernel", "_gate_up_kernel"))
