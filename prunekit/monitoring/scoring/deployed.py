"""The deployed model reads contexts: NLL of prompts and answers, hidden states of a middle layer, and, where the dense
model has read them, how far the two are apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunekit.evaluation.token_scores import token_scores
from prunekit.monitoring.scoring.dense import Said, each_read
from prunekit.monitoring.scoring.scores import RequestScore, request_score

if TYPE_CHECKING:
    import torch

    from prunekit.monitoring.scoring.contexts import Context


def score(
    model: Any,
    contexts: Sequence[Context],
    said: Mapping[str, Said],
    name: str = "the deployed model",
    batch: int = 1,
) -> Iterator[RequestScore]:
    """The scores of each of ``contexts``; beside the dense model of those that ``said`` holds by their ids.

    One forward pass for ``batch`` of them. Raises PrunekitError where what comes out is not finite.
    """
    from prunekit.models.head import Head

    head = Head(model)
    with _middle(model) as caught:
        for part, states in each_read(model, contexts, name, batch):
            middle = caught.pop()
            caught.clear()
            for context, rows, layer in zip(part, states, middle, strict=True):
                yield _score(head, context, rows[: len(context.ids) - 1], layer, said.get(context.id), name)


def _score(
    head: Any, context: Context, hidden: torch.Tensor, middle: torch.Tensor, dense: Said | None, name: str
) -> RequestScore:
    import torch

    targets = torch.tensor(context.ids[1:])
    # The first position takes what heads attend to when they attend to nothing: it is the same in every text.
    feature = middle[1 : context.prompt].float().mean(0).cpu()
    if dense is None:
        made = token_scores(head, hidden, targets, name=name, text="the log")
    else:
        made = dense.beside(head, hidden, targets, name)
    return request_score(context, made, _stored(feature), bound=dense is not None and dense.bound)


def _stored(feature: torch.Tensor) -> Any:
    """Float16 where that holds it: a few units of some models are in the thousands."""
    import torch

    fits = float(feature.abs().max()) < 6e4
    return (feature.to(torch.float16) if fits else feature).numpy()


@contextmanager
def _middle(model: Any) -> Iterator[list[torch.Tensor]]:
    """What leaves the middle decoder layer, [B, L, hidden_size], of every forward pass in the block."""
    caught: list[torch.Tensor] = []
    layers = model.get_submodule("model.layers")

    def catch(module: Any, args: Any, output: Any) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output).detach())

    handle = layers[(len(layers) - 1) // 2].register_forward_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()
