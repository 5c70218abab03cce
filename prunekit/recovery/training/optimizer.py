"""AdamW over named weights, whose state is a dictionary of named tensors: it can be kept, sliced and taken up again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig
from prunekit.recovery.training.sharding import average, clip, is_sharded, like, whole
from prunekit.utils.numerics.memory import out_of_memory

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with ``config``'s settings. ``updates`` counts the steps that were
    taken: those that were not finite are not."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig):
        self.parameters, self.updates, self._clip = dict(parameters), 0, config.clip
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for each in parameters.values():
            # One kernel takes tensors that are whole, or such that are spread over ranks.
            groups.setdefault((each.dim() > 1, is_sharded(each)), []).append(each)
        self._adam = torch.optim.AdamW(
            [
                {"params": some, "weight_decay": config.weight_decay if matrices else 0.0}
                for (matrices, _), some in groups.items()
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    def begin(self) -> None:
        """Make the state that AdamW would make in its first step, where it has none: where memory is too small, that
        shows now, and a trial before the training holds all that the training does.

        Raises PrunekitError where it is.
        """
        with _fitting():
            for parameter in self.parameters.values():
                if parameter not in self._adam.state:
                    self._adam.state[parameter] = {
                        "step": torch.zeros((), device=parameter.device),
                        **{kind: torch.zeros_like(parameter, requires_grad=False) for kind in MOMENTS},
                    }

    def zero(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def step(self, rate: float) -> float:
        """Move the weights by their gradients, whose norm is returned as it was before it was clipped. Where it is not
        finite, nothing moves."""
        average(self.parameters.values())
        norm = clip(self.parameters.values(), self._clip)
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
            self.updates += 1
        return norm

    def moments(self) -> dict[str, torch.Tensor]:
        """Both moments of every weight, as "exp_avg.NAME" and "exp_avg_sq.NAME"; nothing before the first step. With
        several ranks, on rank 0 alone; all ask together."""
        return whole(self.own_moments())

    def own_moments(self) -> dict[str, torch.Tensor]:
        """The same as this rank has them."""
        return {
            f"{kind}.{name}": self._adam.state[parameter][kind]
            for name, parameter in self.parameters.items()
            for kind in MOMENTS
            if self.updates
        }

    def load(self, moments: Mapping[str, torch.Tensor], updates: int) -> None:
        """Go on where another optimizer of the same weights stopped after ``updates`` steps.

        Raises PrunekitError where a moment is missing or of another shape.
        """
        self.updates = updates
        if not updates:
            return
        for name, parameter in self.parameters.items():
            kept = {kind: moments.get(f"{kind}.{name}") for kind in MOMENTS}
            if any(each is None or each.shape != parameter.shape for each in kept.values()):
                raise PrunekitError(
                    f"The training's state lacks the moments of {name}; it is damaged. Delete the "
                    "folder of the training (the output's name and .training) to begin anew."
                )
            with _fitting():
                self._adam.state[parameter] = {
                    "step": torch.tensor(float(updates), device=parameter.device),
                    **{kind: like(parameter, each).clone() for kind, each in kept.items() if each is not None},
                }


@contextmanager
def _fitting() -> Iterator[None]:
    """Raises PrunekitError where the block needs more memory than there is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise PrunekitError(
            "The weights and AdamW's two moments of each don't fit into memory. Train adapters (--set lora=16), or "
            "take a machine with more memory, or several (docs/sizes.md)."
        ) from None
