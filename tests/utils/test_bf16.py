from __future__ import annotations

import pytest
import torch

from prunekit.models.sublayers import sequences_at_a_time
from prunekit.utils.numerics.bf16 import fast_sums, has_fast_products


@pytest.mark.skipif(not has_fast_products("cpu"), reason="this CPU has no bfloat16 products")
def test_sums_of_rounded_products_are_not_rounded() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 128, generator=generator)
    with fast_sums("cpu"):
        made = z.T @ z
    rounded = z.bfloat16().double()

    def near(wanted: torch.Tensor) -> bool:
        return torch.allclose(made.double(), wanted, rtol=1e-5, atol=1e-4)

    assert not torch.allclose(rounded.T @ rounded, z.double().T @ z.double(), rtol=1e-5, atol=1e-4)
    # oneDNN rounds the factors where there is AMX; with AVX-512 BF16 alone it stays with float32.
    assert near(rounded.T @ rounded) or (not torch.cpu._is_amx_tile_supported() and near(z.double().T @ z.double()))


def test_nothing_changes_where_it_is_not_wanted_and_afterwards() -> None:
    z = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    plain = z.T @ z
    with fast_sums("cpu", wanted=False):
        assert torch.equal(z.T @ z, plain)
    with pytest.raises(ValueError, match="on purpose"), fast_sums("cpu"):
        raise ValueError("on purpose")
    assert torch.equal(z.T @ z, plain)


@pytest.mark.parametrize(
    ("batch", "length", "device", "wanted"),
    [(8, 512, "cpu", 2), (8, 64, "cpu", 8), (8, 4096, "cpu", 1), (1, 16, "cpu", 1), (8, 512, "cuda", 8)],
)
def test_cpus_take_few_tokens_at_a_time(batch: int, length: int, device: str, wanted: int) -> None:
    assert sequences_at_a_time(batch, length, device) == wanted
