from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.next_token import next_token
from prunekit.kernels.ops.utils.backend import using


def state(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, highest logits (strided, as the runtime keeps them), positions, lengths: all of them wrong so far."""
    kept = torch.full((rows, 2), 7.0)
    positions = torch.arange(rows, dtype=torch.int32) * 3
    return torch.full((rows,), -1), kept[:, 0], positions, torch.zeros(rows, dtype=torch.int32)


@pytest.mark.parametrize("backend", ("triton", "torch"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize(("rows", "vocabulary"), ((1, 64), (3, 512), (2, 8192), (2, 20_001)))
def test_as_pytorch_says(rows: int, vocabulary: int, dtype: torch.dtype, backend: str) -> None:
    g = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=g).to(dtype)
    tokens, highest, positions, lengths = state(rows)
    with using(backend):  # type: ignore[arg-type]
        next_token(logits, tokens, highest, positions, lengths)
    assert torch.equal(tokens, logits.float().argmax(-1)) and torch.equal(highest, logits.float().amax(-1))
    assert positions.tolist() == [3 * row + 1 for row in range(rows)]
    assert lengths.tolist() == [3 * row + 2 for row in range(rows)]


def test_of_equal_logits_the_first_counts() -> None:
    """Half precision has many: whichever the token were, another run must give the same."""
    logits = torch.zeros(2, 20_000)
    logits[0, [11, 8192 + 5, 19_999]] = 2.0
    tokens, highest, *rest = state(2)
    next_token(logits, tokens, highest, *rest)
    assert tokens.tolist() == [11, 0] and highest.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("place", (0, 8192, 19_999))
def test_what_is_no_number_is_told(place: int) -> None:
    logits = torch.zeros(2, 20_000)
    logits[1, place] = float("nan")
    tokens, highest, *rest = state(2)
    next_token(logits, tokens, highest, *rest)
    assert highest[0] == 0 and highest[1].isnan()
    logits[:] = float("-inf")
    next_token(logits, tokens, highest, *rest)
    assert tokens.tolist() == [0, 0] and highest.isneginf().all()


def test_nothing_else_is_written() -> None:
    kept = torch.full((3, 2), 7.0)
    next_token(torch.randn(3, 100), torch.zeros(3, dtype=torch.int64), kept[:, 0], *state(3)[2:])
    assert (kept[:, 1] == 7).all()


def test_opcheck() -> None:
    torch.library.opcheck(next_token, (torch.randn(2, 64), *state(2)))
