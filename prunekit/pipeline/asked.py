"""How a pruned model is asked to be trained back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.plan.training import check_checkpoint_minutes

if TYPE_CHECKING:
    from prunekit.recovery.training.progress import Listener


@dataclass(frozen=True)
class Recovery:
    """How :func:`prune` trains back what pruning takes: toward the dense model, on ``text``, for so many ``tokens``
    ("50M") or about so many ``minutes``, in ``stages`` of pruning and training (None: as many as suit both).

    ``settings`` are called as --set calls them (:mod:`prunekit.plan.training`). There is a checkpoint to go on from
    every ``checkpoint_minutes``; curves for TensorBoard go into the folder ``tensorboard``, and ``listener`` is told of
    stages, steps and notes.

    >>> prune("smollm2-135m", "smaller", blocks=0.5, recover=Recovery(tokens="50M"))  # doctest: +SKIP
    """

    tokens: str | int | None = None
    minutes: float | None = None
    text: str | None = None
    stages: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoint_minutes: float = 10.0
    tensorboard: str | Path | None = None
    listener: Listener | None = None

    def __post_init__(self) -> None:
        check_checkpoint_minutes(self.checkpoint_minutes)


def training_device(device: str) -> str:
    """Where to train: ``device``, or with auto the CPU of an Apple computer, whose GPU has no float64.

    Raises PrunekitError where that GPU was asked for.
    """
    from prunekit.models.source import pick_device

    if pick_device(device).type != "mps":
        return device
    if device != "auto":
        raise PrunekitError(
            f"Losses are summed in float64, which {device} does not have; say --device cpu, or train on a machine with "
            "CUDA."
        )
    return "cpu"


def check_training_dtype(dtype: str) -> None:
    """Raises PrunekitError where nothing can be trained in ``dtype``."""
    if dtype == "float16":
        raise PrunekitError("Training computes in float32 or bfloat16: the gradients of float16 end at 65,504.")
