"""The Fisher information of every output projection's outputs: the metric in which loss curves count errors."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from prunekit.models.families import Family
from prunekit.models.head import Head, hidden_states
from prunekit.models.sublayers import KINDS, Kind, Sublayers
from prunekit.utils.advance import Advance
from prunekit.utils.numerics.bf16 import fast_products
from prunekit.utils.numerics.categorical import sampled
from prunekit.utils.numerics.finite import check_computed, watched_layers
from prunekit.utils.numerics.frozen import frozen

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
    advance: Advance,
) -> Fisher:
    """E[s² g gᵀ], float32 [d, d] on the CPU, for every output projection: g is the gradient of a sequence's summed loss
    at the projection's output for one token, s the root mean square of the residual stream behind it.

    Next tokens are sampled from the model itself (the true Fisher, not the empirical one). ``fast`` allows
    :func:`~prunekit.utils.numerics.bf16.fast_products`. Sums are kept in ``store`` as they grow, and gone on from.
    Raises PrunekitError where a layer's output or gradient is not finite.
    """
    begun = None if store is None else store.read(len(ids))
    parts = Sublayers(model, family, ids.shape[1])
    made: Fisher = {} if begun is None else begun.sums
    scale: dict[tuple[int, Kind], torch.Tensor] = {}
    handles = []

    def take(key: tuple[int, Kind], module: nn.Module, _: Any, gradients: tuple[torch.Tensor, ...]) -> None:
        gradient = gradients[0].float() * scale.pop(key)[..., None]
        flat = gradient.flatten(0, 1)
        product = (flat.T @ flat).cpu()
        made[key] = made[key] + product if key in made else product

    def see(key: tuple[int, Kind], hidden: torch.Tensor) -> None:
        size = stream_size(hidden.detach())
        scale[key] = torch.where(ordinary(size), size, 0.0)

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
        advance(-(-done // batch_size))
    try:
        with frozen(model), watched_layers(parts.layers):
            for batch in ids[done:].split(batch_size) if done < len(ids) else ():
                with torch.enable_grad(), fast_products(embeddings.weight.device, fast):
                    hidden = hidden_states(model, batch)
                hidden.backward(_slope(head, hidden.detach(), generator))
                done += len(batch)
                if store is not None:
                    store.keep(done, made, generator.get_state())
                advance()
    finally:
        for handle in handles:
            handle.remove()
    for (index, kind), total in made.items():
        check_computed(total, index, f"the gradients of its {parts.output_name(kind)}")
    return {key: total / ids.numel() for key, total in made.items()}


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
