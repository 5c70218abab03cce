from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.utils.layout import pack_ffn, padded
from prunekit.kernels.runtime.kv_cache import KVCache


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
        packed.down,
        "silu",
        gate_up_bias=packed.gate_up_bias,
        down_bias=packed.down_bias,
    )
    torch.testing.assert_close(got, expected)
    assert packed.down.shape == (hidden, padded(width))
    assert not packed.gate_up[:, width:].any() and not packed.down[:, width:].any()
    assert packed.extra_bytes == 3 * (padded(width) - width) * hidden * 8
    # Large weights that need no pads take no second place in memory.
    assert (packed.down.data_ptr() == down.data_ptr()) == (width % 16 == 0)
    if width > 1000:
        assert packed.extra_bytes <= 0.02 * 3 * width * hidden * 8


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
