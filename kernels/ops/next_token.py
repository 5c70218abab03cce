"""The end of a decode step: the token of the highest logit, and all that the next step starts from."""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.utils._triton import jit, start_after_previous, tl
from prunekit.kernels.ops.utils.backend import why_not_triton
from prunekit.kernels.ops.utils.dispatch import overlapped
from prunekit.kernels.ops.utils.launch import Launch, run


@jit
def _next_token_kernel(
    logits_ptr,
    tokens_ptr,
    highest_ptr,
    positions_ptr,
    lengths_ptr,
    table_ptr,
    hidden_ptr,
    scale_ptr,
    vocabulary,
    hidden_size,
    highest_stride,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """tokens[r] = argmax logits[r], highest[r] = max logits[r] (NaN where any is), positions[r] += 1, lengths[r] =
    positions[r] + 1, hidden[r] = table[tokens[r]] · scale. One program a row: the logits of one lie in the L2 cache and
    are read in a few µs."""
    start_after_previous(PDL)
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    place = tl.zeros((BLOCK,), dtype=tl.int32)
    wrong = tl.zeros((BLOCK,), dtype=tl.int32)
    for start in range(0, vocabulary, BLOCK):
        there = start + column
        logits = tl.load(
            logits_ptr + row.to(tl.int64) * vocabulary + there, mask=there < vocabulary, other=float("-inf")
        ).to(tl.float32)
        wrong = tl.where(logits == logits, wrong, 1)
        # Of equal ones the first stays, as in PyTorch on a CPU.
        better = logits > top
        place = tl.where(better, there, place)
        top = tl.where(better, logits, top)
    highest = tl.max(top, axis=0)
    token = tl.min(tl.where(top == highest, place, 2147483647), axis=0)
    highest = tl.where(tl.max(wrong, axis=0) > 0, float("nan"), highest)
    tl.store(tokens_ptr + row, token.to(tl.int64))
    tl.store(highest_ptr + row * highest_stride, highest)
    position = tl.load(positions_ptr + row) + 1
    tl.store(positions_ptr + row, position)
    tl.store(lengths_ptr + row, position + 1)
    embedding = table_ptr + token.to(tl.int64) * hidden_size
    # One load of 16 bytes a thread.
    channel = tl.arange(0, BLOCK // 2)
    for start in range(0, hidden_size, BLOCK // 2):
        there = start + channel
        state = tl.load(embedding + there, mask=there < hidden_size, other=0.0)
        if scale_ptr is not None:
            # Rounded as transformers rounds it.
            scale = tl.load(scale_ptr).to(state.dtype).to(tl.float32)
            state = (state.to(tl.float32) * scale).to(state.dtype)
        tl.store(hidden_ptr + row.to(tl.int64) * hidden_size + there, state, mask=there < hidden_size)


def launches(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    highest: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    hidden: torch.Tensor,
    scale: torch.Tensor | None = None,
) -> list[Launch]:
    """What :func:`next_token` starts. Tensors as there."""
    rows, vocabulary = logits.shape
    return [
        Launch(
            _next_token_kernel,
            (rows,),
            {
                "logits_ptr": logits,
                "tokens_ptr": tokens,
                "highest_ptr": highest,
                "positions_ptr": positions,
                "lengths_ptr": lengths,
                "table_ptr": table,
                "hidden_ptr": hidden,
                "scale_ptr": scale,
                "vocabulary": vocabulary,
                "hidden_size": hidden.shape[1],
                "highest_stride": highest.stride(0),
                "BLOCK": 8192,
            },
            num_warps=16,
            overlap=overlapped(logits.device, logits.dtype),
        )
    ]


def next_token_torch(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    highest: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    hidden: torch.Tensor,
    scale: torch.Tensor | None = None,
) -> None:
    """The same in PyTorch."""
    best = logits.max(-1)
    tokens.copy_(best.indices)
    highest.copy_(best.values)
    positions.add_(1)
    torch.add(positions, 1, out=lengths)
    rows = F.embedding(tokens, table)
    hidden.copy_(rows if scale is None else rows * scale.to(table.dtype))


@torch.library.custom_op("prunekit::next_token", mutates_args=("tokens", "highest", "positions", "lengths", "hidden"))
def next_token(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    highest: torch.Tensor,
    positions: torch.Tensor,
    lengths: torch.Tensor,
    table: torch.Tensor,
    hidden: torch.Tensor,
    scale: torch.Tensor | None = None,
) -> None:
    """Writes what the next step starts from: ``tokens`` [rows] int64 of the highest of ``logits`` [rows, vocabulary]
    (contiguous; of equal ones the first), ``highest`` [rows] float32, maybe strided, those logits themselves, NaN
    where any of a row is; ``positions`` [rows] int32 grow by 1, and ``lengths`` [rows] int32 are one more than they;
    ``hidden`` [rows, H], contiguous, takes the tokens' rows of ``table`` [at least vocabulary, H], times ``scale``, a
    tensor of one number, where there is one.
    """
    if why_not_triton(logits.device, logits.dtype):
        next_token_torch(logits, tokens, highest, positions, lengths, table, hidden, scale)
    else:
        run(launches(logits, tokens, highest, positions, lengths, table, hidden, scale))


@next_token.register_fake
def _(logits, *rest, **options):  # type: ignore[no-untyped-def]
    return None
