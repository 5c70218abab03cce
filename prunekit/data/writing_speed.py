"""How fast the dense model will write text, by a few steps of it: told before hours are spent."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prunekit.data.self_generated import CHUNK, Writer, computing, continued, cost_of_place
from prunekit.utils.advance import untold

if TYPE_CHECKING:
    from prunekit.models.dense import DenseModel

# Tokens of each sequence that are written to be timed.
_FEW = 8


def writing_speed(dense: DenseModel, length: int, *, sequences: int = CHUNK, writer: Writer | None = None) -> float:
    """Tokens a second at which this process samples sequences of ``length`` tokens from the ``dense`` model, so many at
    a time (:func:`prunekit.data.self_generated.written_chunks`), or from the ``writer`` where one is given. Later
    tokens of the plain model are slower, which is reckoned with. What is written here is thrown away."""
    import torch

    few = min(length, 1 + _FEW)
    sequences = min(sequences, CHUNK)
    shape = dense.source.shape
    starts = torch.randint(0, shape.vocab_size, (sequences, 1), generator=torch.Generator().manual_seed(0))
    if writer is not None:
        # The first call loads the model.
        writer.write(starts, few, 0)
        began = time.perf_counter()
        writer.write(starts, few, 0)
        return sequences * (few - 1) / (time.perf_counter() - began)
    generator = torch.Generator().manual_seed(0)
    with computing(dense) as model:
        continued(model, shape, starts, 2, generator, untold)
        began = time.perf_counter()
        continued(model, shape, starts, few, generator, untold)
        seconds = time.perf_counter() - began
    head = 2.0 * shape.vocab_size * shape.hidden_size
    slower = (head + cost_of_place(shape, length / 2)) / (head + cost_of_place(shape, few / 2))
    return sequences * (few - 1) / (seconds * slower)
