from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.next_token import next_token
from prunekit.kernels.ops.utils.backend import using

State = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def state(rows: int, vocabulary: int, hidden: int = 48, dtype: torch.dtype = torch.float32) -> State:
    """Tokens, highest logits (strided, as the runtime keeps them), positions, lengths, table, embeddings: what changes
    is wrong so far."""
    kept = torch.full((rows, 2), 7.0)
    positions = torch.arange(rows, dtype=torch.int32) * 3
    table = torch.randn(vocabulary, hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    lengths = torch.zeros(rows, dtype=torch.int32)
    return torch.full((rows,), -1), kept[:, 0], positions, lengths, table, torch.full((rows, hidden), 7.0, dtype=dtype)


@pytest.mark.parametrize("backend", ("triton", "torch"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
@pytest.mark.parametrize(("rows", "vocabulary"), ((1, 64), (3, 512), (2, 8192), (2, 20_001)))
def test_as_pytorch_says(rows: int, vocabulary: int, dtype: torch.dtype, backend: str) -> None:
    g = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=g).to(dtype)
    # More rows than tokens, as padded vocabularies have; once a row of the table takes two rounds.
    made = state(rows, vocabulary + 8, 9000 if vocabulary == 512 else 48, dtype)
    tokens, highest, positions, lengths, table, hidden = made
    with using(backend):  # type: ignore[arg-type]
        next_token(logits, *made)
    assert torch.equal(tokens, logits.float().argmax(-1)) and torch.equal(highest, logits.float().amax(-1))
    assert positions.tolist() == [3 * row + 1 for row in range(rows)]
    assert lengths.tolist() == [3 * row + 2 for row in range(rows)]
    assert torch.equal(hidden, table[tokens])


@pytest.mark.parametrize(
    "backend, dtype",
    (
        ("triton", torch.float32),
        ("triton", torch.float16),
        ("torch", torch.float16),
        ("torch", torch.bfloat16),  # the interpreter cuts what a GPU rounds
    ),
)
@pytest.mark.parametrize("scale_dtype", (torch.float32, torch.float16))
def test_scaled_embeddings_are_those_of_transformers(
    scale_dtype: torch.dtype, backend: str, dtype: torch.dtype
) -> None:
    """Gemma's: to the bit, with the scale rounded to the dtype of the table."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    embed = Gemma3TextScaledWordEmbedding(100, 48, 0, embed_scale=48**0.5).to(dtype)
    made = state(3, 100, 48, dtype)
    table, hidden = made[4:]
    embed.weight.data = table
    with using(backend):  # type: ignore[arg-type]
        next_token(torch.randn(3, 100), *made, embed.embed_scale.to(scale_dtype))
    embed.embed_scale = embed.embed_scale.to(scale_dtype)
    assert torch.equal(hidden, embed(made[0]))


def test_of_equal_logits_the_first_counts() -> None:
    """Half precision has many: whichever the token were, another run must give the same."""
    logits = torch.zeros(2, 20_000)
    logits[0, [11, 8192 + 5, 19_999]] = 2.0
    tokens, highest, *rest = state(2, 20_000)
    next_token(logits, tokens, highest, *rest)
    assert tokens.tolist() == [11, 0] and highest.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("place", (0, 8192, 19_999))
def test_what_is_no_number_is_told(place: int) -> None:
    logits = torch.zeros(2, 20_000)
    logits[1, place] = float("nan")
    tokens, highest, *rest = state(2, 20_000)
    next_token(logits, tokens, highest, *rest)
    assert highest[0] == 0 and highest[1].isnan()
    logits[:] = float("-inf")
    next_token(logits, tokens, highest, *rest)
    assert tokens.tolist() == [0, 0] and highest.isneginf().all()


def test_nothing_else_is_written() -> None:
    kept = torch.full((3, 2), 7.0)
    tokens, _, *rest = state(3, 100)
    rest[-1] = (arena := torch.full((5, 48), 7.0))[1:4]
    next_token(torch.randn(3, 100), tokens, kept[:, 0], *rest)
    assert (kept[:, 1] == 7).all() and (arena[[0, 4]] == 7).all() and (arena[1:4] != 7).all()


def test_opcheck() -> None:
    torch.library.opcheck(next_token, (torch.randn(2, 64), *state(2, 64)))
    torch.library.opcheck(next_token, (torch.randn(2, 64), *state(2, 64), torch.tensor(3.0)))
