"""The Fisher information of every output projection's outputs: the metric in which loss curves count errors."""

from __future__ import annotations

from collections.abc import Container
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.models.families import Family
from prunekit.models.head import Head, hidden_states
from prunekit.models.sublayers import KINDS, Kind, Sublayers
from prunekit.utils.advance import Advance
from prunekit.utils.numerics.bf16 import fast_products
from prunekit.utils.numerics.categorical import pass_over, sampled
from prunekit.utils.numerics.finite import check_computed, watched_layers
from prunekit.utils.numerics.frozen import frozen
from prunekit.utils.phases.telling import keeping
from prunekit.utils.process.ranks import gathered, rank, rounds, size

if TYPE_CHECKING:
    from prunekit.pruning.curves.fisher_store import FisherStore

# Times the usual size of the residual stream.
_ENORMOUS = 8.0


def stream_size(hidden: torch.Tensor) -> torch.Tensor:
    """Root mean square of residual-stream states [B, L, d], float32 [B, L]."""
    return hidden.float().square().mean(-1).sqrt()


def ordinary(size: torch.Tensor) -> torch.Tensor:
    """True for all tokens but those whose stream is several times as large as is usual."""
    return size <= _ENORMOUS * size.median()


Fisher = dict[tuple[int, Kind], torch.Tensor]


def output_fisher(
    model: Any,
    family: Family,
    ids: torch.Tensor,
    *,
    batch_size: int = 4,
    seed: int = 0,
    fast: bool = False,
    store: FisherStore | None = None,
    known: Container[int] = (),
    advance: Advance,
) -> Fisher:
    """E[s² g gᵀ], float32 [d, d] on the CPU, for every output projection: g is the gradient of a sequence's summed loss
    at the projection's output for one token, s the root mean square of the residual stream behind it.

    Next tokens are sampled from the model itself (the true Fisher, not the empirical one). ``fast`` allows
    :func:`~prunekit.utils.numerics.bf16.fast_products`. One process keeps its sums in ``store`` as they grow, and goes
    on from what is there; several keep none. Ranks share out the batches, and each gets the matrices of its
    :func:`~prunekit.utils.process.ranks.share_of` the layers that are not ``known``. Raises PrunekitError where a
    layer's output or gradient is not finite.
    """
    # Of several ranks, each has the sums of some layers only.
    store = store if size() == 1 else None
    begun = None if store is None else store.read(len(ids))
    parts = Sublayers(model, family, ids.shape[1])
    made: Fisher = {} if begun is None else begun.sums
    own: Fisher = {}
    scale: dict[tuple[int, Kind], torch.Tensor] = {}
    handles = []

    def take(key: tuple[int, Kind], module: nn.Module, _: Any, gradients: tuple[torch.Tensor, ...]) -> None:
        gradient = gradients[0].float() * scale.pop(key)[..., None]
        flat = gradient.flatten(0, 1)
        product = (flat.T @ flat).cpu()
        if size() == 1:
            add(key, product)
        else:
            own[key] = product

    def add(key: tuple[int, Kind], product: torch.Tensor) -> None:
        made[key] = made[key] + product if key in made else product

    def collect(batches: int) -> None:
        """Add what each rank made of its batch to the sums, in the order of the batches: float32 sums depend on it."""
        missing = [(index, layer) for index, layer in enumerate(parts.layers) if index not in known]
        for place, (index, layer) in enumerate(missing):
            for kind in KINDS:
                width = parts.projection(layer, kind).out_features
                product = own.pop((index, kind)) if rank() < batches else torch.zeros(width, width)
                for each in gathered(product, place % size())[:batches]:
                    add((index, kind), each)
        own.clear()

    def see(key: tuple[int, Kind], hidden: torch.Tensor) -> None:
        length = stream_size(hidden.detach())
        scale[key] = torch.where(ordinary(length), length, 0.0)

    for index, layer in enumerate(parts.layers):
        for kind in KINDS:
            projection = parts.projection(layer, kind)
            handles.append(projection.register_full_backward_hook(partial(take, (index, kind))))
        handles.append(
            parts.entrance(layer, "ffn").register_forward_pre_hook(
                lambda module, args, index=index: see((index, "attention"), args[0])
            )
        )
        handles.append(
            layer.register_forward_hook(
                lambda module, args, output, index=index: see(
                    (index, "ffn"), output[0] if isinstance(output, tuple) else output
                )
            )
        )
    head = Head(model, fast)
    embeddings = model.get_input_embeddings()
    handles.append(embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True)))
    generator = torch.Generator(device=embeddings.weight.device).manual_seed(seed)
    done = 0
    if begun is not None:
        generator.set_state(begun.state)
        done = begun.sequences
        advance(-(-done // batch_size), kept=True)
    try:
        with frozen(model), watched_layers(parts.layers):
            for some in rounds(ids[done:].split(batch_size) if done < len(ids) else ()):
                for place, batch in enumerate(some):
                    if place != rank():
                        _pass_over(head, batch, generator)
                        continue
                    with torch.enable_grad(), fast_products(embeddings.weight.device, fast):
                        hidden = hidden_states(model, batch)
                    hidden.backward(_slope(head, hidden.detach(), generator))
                if size() > 1:
                    collect(len(some))
                done += sum(map(len, some))
                if store is not None and store.keep(done, made, generator.get_state()):
                    keeping("the Fisher information of sequences", done, len(ids))
                advance(len(some))
    finally:
        for handle in handles:
            handle.remove()
    for (index, kind), total in made.items():
        check_computed(total, index, f"the gradients of its {parts.output_name(kind)}")
    return {key: total / ids.numel() for key, total in made.items()}


def _pass_over(head: Head, ids: torch.Tensor, generator: torch.Generator) -> None:
    """Leave ``generator`` as :func:`_slope` of the batch ``ids`` [B, L] would."""
    for start in range(0, ids.numel(), head.rows):
        pass_over(min(head.rows, ids.numel() - start), generator)


def _slope(head: Head, hidden: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Gradient of the summed loss of sampled next tokens by the final hidden states [B, L, d]."""
    slopes = []
    for piece in hidden.flatten(0, 1).split(head.rows):
        logits, pull_back = head.traced(piece)
        labels = sampled(logits, generator)
        slope = logits.softmax(-1)
        slope[torch.arange(len(labels), device=labels.device), labels] -= 1
        slopes.append(pull_back(slope))
    return torch.cat(slopes).view_as(hidden)
