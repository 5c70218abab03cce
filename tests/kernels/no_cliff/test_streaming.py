"""Gates on what makes decode kernels slow, for the layers of 1B and 8B models, dense and pruned to 40 %.

What they predict is in kernels/testing/streaming.py; only a GPU measures.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from prunekit.kernels.ops import linear_decode
from prunekit.kernels.ops.attention import decode as attention_decode
from prunekit.kernels.ops.attention import qkv_rope
from prunekit.kernels.ops.mlp import decode as mlp_decode
from prunekit.kernels.ops.utils.backend import decode_pieces, using
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.kernels.ops.utils.layout import padded
from prunekit.kernels.testing.streaming import streaming, weight_of
from tests.support.gate import meta, needs_compiler

pytestmark = needs_compiler

VOCABULARY = 128256
# Hidden size, head_dim, query and KV heads, FFN width: Llama-3.2-1B and Llama-3.1-8B, dense and with 40 % of the blocks
# left (as `prunekit plan --blocks 0.4` gives on the mean).
MODELS = {
    "1B dense": (2048, 64, 32, 8, 8192),
    "1B 40 %": (2048, 64, 20, 5, 3202),
    "8B dense": (4096, 128, 32, 8, 14336),
    "8B 40 %": (4096, 128, 16, 4, 5701),
}
# What a layer's launch must read to be bound by bandwidth; less is bound by the launch itself.
LEAST_BYTES = 4 * 2**20


def layer(model: str, rows: int = 1) -> Iterator[tuple[str, Launch]]:
    """The launches of one layer that read weights, for ``rows`` sequences."""
    hidden, head_dim, heads, kv, width = MODELS[model]
    small, width = torch.float32, padded(width)
    x, norm = meta(rows, hidden), meta(hidden, dtype=small)
    cache, table = meta(rows, kv, 2048, head_dim), meta(2048, head_dim // 2, dtype=small)
    weight = meta((heads + 2 * kv) * head_dim, hidden)
    *_, qkv = qkv_rope.launches(
        x, weight, heads, cache, cache, meta(rows, dtype=torch.int32), meta(rows, heads, head_dim), table, table,
        norm_weight=norm, eps=1e-5,
    )  # fmt: skip
    yield "QKV", qkv
    (o,) = linear_decode.launches(meta(rows, heads * head_dim), meta(hidden, heads * head_dim), x, residual=x)
    yield "O", o
    both = meta(2, width, hidden), meta(hidden, width)
    *_, gate_up, down = mlp_decode.launches(x, *both, "silu", x, norm, 1e-5, residual=x)
    yield "gate_up", gate_up
    yield "down", down


@pytest.mark.parametrize("rows", (1, 2, 8, 16))
@pytest.mark.parametrize("model", MODELS)
def test_layers_are_bound_by_memory(model: str, rows: int) -> None:
    seen = [
        streaming(f"{model} {name}", each) for name, each in layer(model, rows) if weight_of(each).nbytes >= LEAST_BYTES
    ]
    assert len(seen) >= 3
    failed = [f"{each}: {'; '.join(reasons)}" for each in seen if (reasons := each.failures())]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("capacity", (256, 2048, 131072))
@pytest.mark.parametrize("model", MODELS)
def test_launches_of_a_layer(model: str, capacity: int) -> None:
    """A long context needs no more of them than a short one."""
    _, head_dim, heads, kv, _ = MODELS[model]
    q, cache = meta(1, heads, head_dim), meta(1, kv, capacity, head_dim)
    attention = attention_decode.launches(q, cache, cache, meta(1, dtype=torch.int32), q, 0.1)
    assert len(attention) + len(list(layer(model))) == 5


@pytest.mark.parametrize("rows", (17, 64))
def test_more_rows_are_left_to_cublas(rows: int) -> None:
    """Then no launch of ours reads a 16-bit weight; of int8 weights 16 rows at a time are taken by the same kernels."""
    assert decode_pieces(meta(rows, 2048), int8=False) == ()
    with using("triton"):
        pieces = decode_pieces(meta(rows, 2048), int8=True)
    assert [piece.stop - piece.start for piece in pieces] == [16] * (rows // 16) + [1] * (rows % 16)


@pytest.mark.parametrize("rows", (2, 8, 16))
@pytest.mark.parametrize("hidden", (2048, 4096))
def test_the_head_of_several_rows(hidden: int, rows: int) -> None:
    x, norm = meta(rows, hidden), meta(hidden, dtype=torch.float32)
    launches = linear_decode.launches(x, meta(VOCABULARY, hidden), meta(rows, VOCABULARY), norm_weight=norm, eps=1e-5)
    seen = streaming("head", launches[-1])
    assert not seen.failures(), str(seen)


@pytest.mark.parametrize("hidden", (2048, 4096))
def test_the_head_is_a_pipeline(hidden: int) -> None:
    """It has so many programs that each may wait: measured at 102 % of a copy's bandwidth on an H200."""
    x, norm = meta(1, hidden), meta(hidden, dtype=torch.float32)
    (head,) = linear_decode.launches(x, meta(VOCABULARY, hidden), meta(1, VOCABULARY), norm_weight=norm, eps=1e-5)
    seen = streaming("head", head)
    assert seen.failures() == ["no weight is asked for before the wait"], str(seen)
