"""AdamW over named weights, whose state is a dictionary of named tensors: it can be kept, sliced and taken up again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.plan.training import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with ``config``'s settings. ``updates`` counts the steps that were
    taken: those that were not finite are not."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: TrainingConfig):
        self.parameters, self.updates, self._clip = dict(parameters), 0, config.clip
        matrices = [each for each in parameters.values() if each.dim() > 1]
        others = [each for each in parameters.values() if each.dim() <= 1]
        groups = [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            fused=True,
        )

    def zero(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def step(self, rate: float) -> float:
        """Move the weights by their gradients, whose norm is returned as it was before it was clipped. Where it is not
        finite, nothing moves."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self._clip, foreach=True))
        if math.isfinite(norm):
            for group in self._adam.param_groups:
                group["lr"] = rate
            self._adam.step()
            self.updates += 1
        return norm

    def moments(self) -> dict[str, torch.Tensor]:
        """Both moments of every weight, as "exp_avg.NAME" and "exp_avg_sq.NAME"; nothing before the first step."""
        return {
            f"{kind}.{name}": self._adam.state[parameter][kind]
            for name, parameter in self.parameters.items()
            for kind in MOMENTS
            if parameter in self._adam.state
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
                    f"The training's state lacks the moments of {name}; it is damaged. Begin anew with --overwrite."
                )
            state = {kind: each.to(parameter.device, torch.float32) for kind, each in kept.items() if each is not None}
            self._adam.state[parameter] = {
                "step": torch.tensor(float(updates), device=parameter.device),
                **{kind: each.clone() for kind, each in state.items()},
            }
