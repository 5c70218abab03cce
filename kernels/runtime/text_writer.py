"""Text that the dense model writes for training, sampled by the decode runtime on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prunekit.data.self_generated import Writer

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source

_NAME = "prunekit-kernels-1"


@contextmanager
def text_writer(source: Source, device: str = "auto") -> Iterator[Writer | None]:
    """A :class:`~prunekit.data.self_generated.Writer` of the model ``source`` on the GPU that ``device`` means, loaded
    when it is first asked and freed when the block ends; None where that is no GPU. Raises PrunekitError where the
    model does not fit into its memory."""
    import torch

    from prunekit.models.source import load_model, pick_device

    place = pick_device(device)
    if place.type != "cuda":
        yield None
        return
    # The rest of the kernels is not needed elsewhere.
    from prunekit.kernels.runtime.generate import generate
    from prunekit.kernels.runtime.optimize import optimize

    held: list[object] = []

    def write(starts: torch.Tensor, length: int, seed: int) -> torch.Tensor:
        if not held:
            held.append(optimize(load_model(source, device=device)))
        made = generate(
            held[0], starts.to(place), max_new_tokens=length - 1, do_sample=True, seed=seed, eos_token_id=[]
        )
        return torch.cat([starts, torch.tensor(made.sequences, dtype=torch.int64)], 1)

    try:
        yield Writer(_NAME, write)
    finally:
        held.clear()
        torch.cuda.empty_cache()
