"""The scoring pass: one run over the calibration batches serves gradients, activations and layer importance alike."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.families import Family
from prunekit.plan.shape import ModelShape
from prunekit.pruning.importance.base import (
    BACKWARD,
    Importance,
    LayerImportance,
    Needs,
    Watched,
    importance,
    layer_importance,
)
from prunekit.pruning.importance.layers import LossWithout
from prunekit.pruning.importance.scores import Scores
from prunekit.utils.numerics.finite import check_weight, first_not_finite
from prunekit.utils.numerics.frozen import frozen
from prunekit.utils.numerics.recompute import free_bytes, recomputing
from prunekit.utils.process import ranks

_log = logging.getLogger("prunekit")


def score(
    model: nn.Module,
    family: Family,
    shape: ModelShape,
    input_ids: torch.Tensor | None,
    *,
    importance_name: str = "taylor",
    layer_importance_name: str | None = "cosine",
    batch_size: int = 32,
    seed: int = 0,
    gradient_checkpointing: bool | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Scores:
    """Score every unit and layer of ``model`` on ``input_ids`` [sequences, length].

    Ranks share out the batches, and all get the same scores. Needs the weights, one batch of activations and a number a
    unit: weight gradients are used up and freed one tensor at a time, and ``gradient_checkpointing`` keeps one layer's
    activations where a batch would not fit (None: decided by the memory that is free). ``input_ids`` may be None for
    methods that need no text.

    Raises PrunekitError where a method is unknown or a value is not finite; the message names the layer.
    """
    units = importance(importance_name)
    layers = layer_importance(layer_importance_name) if layer_importance_name else None
    watched = Watched(model, family, shape, seed)
    needs_text = units.needs != "weights" or layers is not None
    if needs_text and input_ids is None:
        raise PrunekitError(f"The importance {importance_name!r} needs calibration text; name some with --calib.")
    if not needs_text:
        # Nothing runs the model here, and what a method doesn't look at (norms; `random`: all) would go unseen.
        _check_weights(watched)
    loss_sum = 0.0
    with (
        frozen(model),
        _prepared(watched, units.needs, gradient_checkpointing, input_ids, batch_size),
        _repeatable(model),
    ):
        units.attach(watched)
        if layers is not None:
            layers.attach(watched)
        first_bad = _watch_outputs(watched)
        if needs_text and input_ids is not None:
            # A loss is the mean of its batch, so batches stay whole: then gradients are those of one process.
            size = 1 if units.per_sequence else batch_size
            for some in ranks.rounds([*enumerate(input_ids.split(size))]):
                for number, batch in ranks.share_of(some):
                    watched.place = number * size
                    loss_sum += _run(watched, units.needs, batch, layers) * len(batch)
                if first_bad:
                    raise _not_finite(watched, first_bad[0])
                if not math.isfinite(loss_sum):
                    raise _not_finite(watched, None)
                for _ in some:
                    on_batch()
            loss_sum = _add_up(watched, units, layers, loss_sum)
        sequences = watched.total
        try:
            return Scores(
                importance=importance_name,
                layers=units.result(),
                layer_importance=layers.result() if layers is not None else None,
                layer_method=layer_importance_name,
                loss=loss_sum / sequences if sequences else None,
                tokens=sequences * input_ids.shape[1] if input_ids is not None and sequences else 0,
                layer_samples=layers.samples() if layers is not None else None,
            )
        except PrunekitError:
            _check_weights(watched)
            raise


def tell_of_idle_ranks(sequences: int, batch_size: int, importance_name: str) -> None:
    """Warn where there are more ranks than batches to :func:`score`."""
    batches = -(-sequences // (1 if importance(importance_name).per_sequence else batch_size))
    if batches < ranks.size():
        _log.warning(
            "The text makes %s for %s processes, so that some have nothing to score; give more sequences, or a smaller "
            "batch_size.",
            "1 batch" if batches == 1 else f"{batches} batches",
            ranks.size(),
        )


def _loss(model: nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=input_ids, labels=input_ids, use_cache=False).loss


def _add_up(watched: Watched, units: Importance, layers: LayerImportance | None, loss_sum: float) -> float:
    """Bring together what all ranks have seen. Returns the sum of their ``loss_sum``."""
    # float64 holds such sums of float32 numbers exactly, so that their order changes nothing.
    seen = torch.tensor([loss_sum, watched.total], dtype=torch.float64)
    ranks.sum_over_ranks(seen)
    watched.total = int(seen[1])
    units.add_up()
    if layers is not None:
        layers.add_up()
    return seen[0].item()


def _run(watched: Watched, needs: Needs, batch: torch.Tensor, layers: object) -> float:
    """One batch: forward, and backward where gradients are needed. Returns the mean loss."""
    model = watched.model
    batch = batch.to(next(model.parameters()).device)
    watched.sequences = len(batch)
    watched.total += len(batch)
    watched.recording = True
    gradients = needs in BACKWARD
    with torch.set_grad_enabled(gradients):
        loss = _loss(model, batch)
    watched.recording = False
    if gradients:
        loss.backward()
    whole = loss.item()
    if isinstance(layers, LossWithout):
        layers.after_batch(batch, whole, lambda ids: _loss(model, ids))
    return whole


@contextmanager
def _prepared(
    watched: Watched, needs: Needs, gradient_checkpointing: bool | None, input_ids: torch.Tensor | None, batch_size: int
) -> Iterator[None]:
    """The frozen model in eval mode, nothing but what ``needs`` says under autograd, and everything put back
    afterwards."""
    model = watched.model
    was_training = {module: module.training for module in model.modules()}
    model.eval()
    for parameter in model.parameters():
        # A gradient left by training would be added to, and scored as part of the new one.
        parameter.grad = None
    if needs == "activation_gradients":
        # With frozen weights, autograd needs one leaf to start from: the embeddings.
        embeddings = model.get_input_embeddings()  # type: ignore[operator]
        watched.handles.append(
            embeddings.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
        )
    use_checkpoints = needs in BACKWARD and (
        _memory_is_short(watched, input_ids, batch_size) if gradient_checkpointing is None else gradient_checkpointing
    )
    try:
        with recomputing(watched.layers, use_checkpoints):
            yield
    finally:
        watched.detach()
        for parameter in model.parameters():
            parameter.grad = None
        for module, flag in was_training.items():
            module.training = flag


@contextmanager
def _repeatable(model: nn.Module) -> Iterator[None]:
    """On CUDA some backward kernels add up in any order unless told not to; the same seed must give the same plan."""
    if next(model.parameters()).device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            # Where a kernel has no repeatable form, its ordinary one must do.
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _memory_is_short(watched: Watched, input_ids: torch.Tensor | None, batch_size: int) -> bool:
    """True where the activations that autograd keeps of one batch would fill more than a third of the free memory."""
    if input_ids is None:
        return False
    parameter = next(watched.model.parameters())
    tokens = min(batch_size, len(input_ids)) * input_ids.shape[1]
    needed = tokens * watched.shape.activation_numbers_per_token() * parameter.element_size()
    return needed > free_bytes(parameter.device) / 3


def _watch_outputs(watched: Watched) -> list[int]:
    """Notes the first layer whose output is not finite, in the list that is returned."""
    first: list[int] = []

    def look(index: int, output: object) -> None:
        if watched.recording and not first:
            hidden = output[0] if isinstance(output, tuple) else output
            assert isinstance(hidden, torch.Tensor)
            # One number for the whole tensor: a NaN or infinity anywhere makes the sum of absolute values so.
            if not torch.isfinite(hidden.detach().abs().sum(dtype=torch.float32)):
                first.append(index)

    for index, layer in enumerate(watched.layers):
        watched.handles.append(
            layer.register_forward_hook(lambda module, args, output, index=index: look(index, output))
        )
    return first


def _not_finite(watched: Watched, index: int | None) -> PrunekitError:
    """``index`` is the first layer whose output is not finite; None where only the loss is not."""
    _check_weights(watched)
    what = "The loss" if index is None else f"Layer {index}: its output"
    dtype = next(watched.model.parameters()).dtype
    return PrunekitError(
        f"{what} is not finite in {dtype}. Score in float32 (--dtype float32); if that is not "
        "finite either, the checkpoint is damaged."
    )


def _check_weights(watched: Watched) -> None:
    if name := first_not_finite(watched.model.named_parameters()):
        check_weight(name, watched.model.get_parameter(name))
