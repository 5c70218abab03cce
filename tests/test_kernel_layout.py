from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from prunekit.kernels import reference
from prunekit.kernels.attention_decode import attention_decode_uneven
from prunekit.kernels.cache import KVCache
from prunekit.kernels.layout import pack_ffn, padded, sort_heads


@pytest.mark.parametrize("width", (1013, 1344, 37, 1024, 16, 17))
def test_packed_ffn_computes_the_same(width: int) -> None:
    g = torch.Generator().manual_seed(0)
    hidden = 48
    gate, up, down = (
        torch.randn(shape, generator=g).double() for shape in ((width, hidden), (width, hidden), (hidden, width))
    )
    gate_bias, up_bias, down_bias = (torch.randn(n, generator=g) for n in (width, width, hidden))
    x = torch.randn(3, hidden, generator=g).double()
    packed = pack_ffn(gate, up, down, gate_bias, up_bias, down_bias)
    expected = (F.silu(x @ gate.T + gate_bias) * (x @ up.T + up_bias)) @ down.T + down_bias
    got = reference.mlp_decode(
        x,
        packed.gate_up,
        packed.down_t,
        "silu",
        gate_up_bias=packed.gate_up_bias,
        down_bias=packed.down_bias,
    )
    torch.testing.assert_close(got, expected)
    assert packed.down_t.shape == (padded(width), hidden)
    assert not packed.gate_up[:, width:].any() and not packed.down_t[width:].any()
    assert packed.extra_bytes == 3 * (padded(width) - width) * hidden * 8
    if width > 1000:
        assert packed.extra_bytes <= 0.02 * 3 * width * hidden * 8


@given(st.lists(st.integers(0, 4), min_size=5, max_size=24))
def test_sorted_heads(kv_of: list[int]) -> None:
    kv_of = [*kv_of, *range(5)]
    layout = sort_heads(kv_of, 5)
    assert sorted(layout.order) == list(range(len(kv_of)))
    for kv in range(5):
        served = layout.order[layout.starts[kv] : layout.starts[kv + 1]]
        assert [kv_of[head] for head in served] == [kv] * kv_of.count(kv)
        assert list(served) == sorted(served)
    assert layout.is_even == (len({kv_of.count(kv) for kv in range(5)}) == 1)


def test_uneven_groups_by_way_of_the_layout() -> None:
    """Heads in any order, served by KV heads as a list says, through sorting and the op that wants them sorted."""
    kv_of = [2, 0, 1, 2, 2, 1]
    layout = sort_heads(kv_of, 3)
    g = torch.Generator().manual_seed(1)
    q = torch.randn(2, 6, 16, generator=g)
    key, value = torch.randn(2, 2, 3, 20, 16, generator=g)
    lengths = torch.tensor([20, 7], dtype=torch.int32)
    sorted_out = attention_decode_uneven(
        q[:, list(layout.order)].contiguous(),
        key,
        value,
        lengths,
        torch.tensor(layout.starts, dtype=torch.int32),
        0.25,
        max_group=3,
    )
    out = torch.empty_like(sorted_out)
    out[:, list(layout.order)] = sorted_out
    for row, length in enumerate(lengths.tolist()):
        for head, kv in enumerate(kv_of):
            weights = (0.25 * key[row, kv, :length] @ q[row, head]).softmax(0)
            torch.testing.assert_close(out[row, head], weights @ value[row, kv, :length])


@pytest.mark.parametrize("kv_of, message", [([0, 3], "names KV head 3"), ([0, 0], "serves no query head")])
def test_heads_that_do_not_fit(kv_of: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sort_heads(kv_of, 2)


def test_cache_layers_share_an_arena_and_nothing_else() -> None:
    cache = KVCache([4, 1, 3], 16, 2, 10, torch.float32, torch.device("cpu"))
    for index, layer in enumerate(cache.layers):
        layer.key.fill_(2 * index + 1)
        layer.value.fill_(2 * index + 2)
    assert [layer.key.shape[1] for layer in cache.layers] == [4, 1, 3]
    for index, layer in enumerate(cache.layers):
        assert (layer.key == 2 * index + 1).all() and (layer.value == 2 * index + 2).all()
        assert layer.key.untyped_storage().data_ptr() == cache.arena.untyped_storage().data_ptr()
    assert cache.arena.numel() == 2 * 8 * 2 * 10 * 16
    assert (cache.arena != 0).all(), "no gaps"
