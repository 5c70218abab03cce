from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from prunekit.kernels.ops import reference
from prunekit.kernels.ops.attention import decode as module
from prunekit.kernels.ops.attention.decode import attention_decode
from prunekit.kernels.ops.utils.backend import using
from tests.support.close import assert_close

NAN = float("nan")


def case(
    heads: int,
    num_kv: int,
    lengths: list[int],
    head_dim: int = 16,
    capacity: int = 400,
    dtype: torch.dtype = torch.float32,
    window: int = 0,
    softcap: float = 0.0,
    seed: int = 0,
) -> dict[str, object]:
    """Arguments of the op; caches are views of an arena with a row more, and NaN where nothing is visible."""
    g = torch.Generator().manual_seed(seed)
    batch = len(lengths)
    # Tokens before heads: all strides but the last are unlike those of a contiguous cache.
    arena = torch.randn(2, batch + 1, capacity, num_kv, head_dim, generator=g).to(dtype).transpose(2, 3)
    for row, length in enumerate(lengths):
        arena[:, row, :, length:] = NAN
        if window:
            arena[:, row, :, : max(0, length - window)] = NAN
    arena[:, batch] = NAN
    return {
        "q": 2 * torch.randn(batch, heads, head_dim, generator=g).to(dtype),
        "k_cache": arena[0],
        "v_cache": arena[1],
        "lengths": torch.tensor(lengths, dtype=torch.int32),
        "scale": head_dim**-0.5,
        "window": window,
        "softcap": softcap,
    }


def check(arguments: dict[str, object]) -> None:
    plain = {name: value for name, value in arguments.items() if name != "arrivals"}
    assert_close(attention_decode(**arguments), reference.attention_decode(**plain))


def processors(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Plan as for a chip of that size: the smaller, the larger the tiles and the fewer the splits."""
    monkeypatch.setattr(module, "multiprocessors", lambda device: count)


@pytest.fixture(autouse=True)
def few_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few tokens, so that short sequences have several."""
    processors(monkeypatch, 8)
    monkeypatch.setattr(module, "LEAST_SPLIT", 64)


@pytest.fixture
def one_split(few_splits: None, monkeypatch: pytest.MonkeyPatch) -> None:
    processors(monkeypatch, 1)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize(
    "heads, num_kv", ((9, 3), (8, 8), (4, 1), (32, 2), (20, 1), (10, 2), (21, 3), (40, 2), (34, 2))
)
def test_groups(heads: int, num_kv: int, dtype: torch.dtype) -> None:
    check(case(heads, num_kv, [200, 1], dtype=dtype))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("head_dim", (8, 64, 80, 96, 128, 256))
def test_head_dim(head_dim: int, dtype: torch.dtype) -> None:
    check(case(4, 2, [150, 3], head_dim, 200, dtype))


@pytest.mark.parametrize("splits", (1, "several"))
@pytest.mark.parametrize("window", (0, 1, 100, 128, 500))
@pytest.mark.parametrize("softcap", (0.0, 3.0, 50.0))
def test_range(softcap: float, window: int, splits: object, request: pytest.FixtureRequest) -> None:
    """Lengths of one token, at and beside the end of a block, full; windows smaller and larger than the length."""
    if splits == 1:
        request.getfixturevalue("one_split")
    check(case(4, 2, [1, 128, 129, 255, 384], capacity=384, window=window, softcap=softcap))


@pytest.mark.parametrize("least, most", ((64, 16), (256, 4)))
@pytest.mark.parametrize("count", (1, 2, 3, 132))
def test_splits(count: int, least: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch, and the same result however the cache is cut; lengths leave some splits empty and others short."""
    processors(monkeypatch, count)
    monkeypatch.setattr(module, "LEAST_SPLIT", least)
    arguments = case(2, 1, [900, 129], capacity=1000)
    (launch,) = module.launches(out=torch.empty(2, 2, 16), **arguments)
    assert launch.args["BLOCK_S"] == 64 and launch.grid == (2, 1, min(count, most))
    check(arguments)


@pytest.fixture
def run_in_order(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[int]], None]:
    """Has the splits of every tile run in a given order: the interpreter takes programs one after the other."""
    from triton.runtime.interpreter import interpreter_builder

    place = interpreter_builder.set_grid_idx

    def set_order(splits: list[int]) -> None:
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda x, y, z: place(x, y, splits[z]))

    return set_order


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_the_same_bits_whoever_comes_last(
    dtype: torch.dtype, run_in_order: Callable[[list[int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five sequences one has work for all splits, one for a part of them, two for one, and one has none. Counters
    are zeros again, so that the next call can use them."""
    processors(monkeypatch, 132)
    arguments = case(40, 2, [400, 250, 64, 3, 0], 24, dtype=dtype)
    arguments["arrivals"] = arrivals = torch.zeros(5 * 40, dtype=torch.int32)
    (launch,) = module.launches(out=torch.empty(5, 40, 24), **arguments)
    assert launch.grid == (5, 4, 7), "twenty query heads of a KV head are two tiles"
    wanted = attention_decode(**arguments)
    check(arguments)
    for order in ([6, 5, 4, 3, 2, 1, 0], [1, 3, 0, 6, 4, 5, 2]):
        run_in_order(order)
        assert torch.equal(attention_decode(**arguments), wanted)
        assert not arrivals.any()


def test_a_short_sequence_in_a_long_cache_combines_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SPLIT", 256)
    arguments = case(4, 2, [256, 5], capacity=4096)
    arguments["arrivals"] = arrivals = torch.full((8,), -5, dtype=torch.int32)
    check(arguments)
    assert (arrivals == -5).all()


def test_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SPLIT", 256)
    half = torch.float16
    assert module.cut(264, 10**6, 64, half, 132) == (64, 1)
    assert module.cut(1, 10**6, 64, half, 132) == (64, module.MAX_SPLITS)
    # A short context has one split.
    assert module.cut(8, 256, 64, half, 132) == (64, 1)
    assert module.cut(8, 2048, 64, half, 132) == (64, 8)
    assert module.cut(8, 32768, 64, half, 132) == (64, 33)
    assert module.cut(264, 4096, 256, half, 132) == (32, 1)
    assert module.cut(264, 4096, 256, torch.float32, 132) == (16, 1)


@pytest.mark.parametrize("splits", (1, "several"))
def test_large_logits(splits: object, request: pytest.FixtureRequest) -> None:
    """No exponential overflows, and no power of two of a far too small logit turns into NaN."""
    if splits == 1:
        request.getfixturevalue("one_split")
    for softcap in (0.0, 30.0):
        # Logits near 10^4 are only right to 10^-3 in float32.
        check({**case(4, 2, [300, 30], dtype=torch.float16, softcap=softcap), "scale": 300.0})


@pytest.mark.parametrize("splits", (1, "several"))
@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_empty_sequence(backend: str, splits: object, request: pytest.FixtureRequest) -> None:
    if splits == 1:
        request.getfixturevalue("one_split")
    for softcap in (0.0, 3.0):
        for lengths in ([0, 300], [0, 0]):
            with using(backend):  # type: ignore[arg-type]
                out = attention_decode(**case(2, 1, lengths, softcap=softcap))
            assert (out[0] == 0).all() and out.isfinite().all()


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("window", (0, 40))
@pytest.mark.parametrize("softcap", (0.0, 3.0))
@pytest.mark.parametrize("heads, num_kv", ((6, 2), (20, 1), (10, 2), (21, 3)))
def test_fallback(heads: int, num_kv: int, softcap: float, window: int, dtype: torch.dtype) -> None:
    with using("torch"):
        for lengths in ([100, 1, 200], [70, 70], [31]):
            check(case(heads, num_kv, lengths, 32, 200, dtype, window, softcap))


@pytest.mark.parametrize("window", (0, 40))
def test_opcheck(window: int) -> None:
    finite = {
        name: value.nan_to_num() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in case(4, 2, [150, 20], window=window).items()
    }
    torch.library.opcheck(attention_decode, (), finite)
    torch.library.opcheck(attention_decode, (), {**finite, "arrivals": torch.zeros(8, dtype=torch.int32)})
