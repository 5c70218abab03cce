"""Tensors that take the place of what slicing alone would give: refitted projections, biases that compensate."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from prunekit.errors import PrunekitError
from prunekit.models.families import BIASES, Coupling, Family, unit_count, unit_rows
from prunekit.models.slicing import LayerSlicer
from prunekit.plan import LayerKeep, Plan
from prunekit.plan.shape import LayerShape

LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.(.+)")


class Overrides:
    """``weights`` by their names in the source model, already cut to the widths of ``plan``, for layers of the shapes
    that ``target`` gives by place, and such as no plan cuts; and the biases that the plan adds, which are zero where
    ``weights`` has none.

    Raises PrunekitError where a name is not one of the source's ``names``, nor of a bias that the plan adds, or where
    an output bias that the plan adds is missing.
    """

    def __init__(
        self,
        family: Family,
        plan: Plan,
        target: Callable[[int], LayerShape],
        weights: Mapping[str, torch.Tensor],
        names: set[str],
    ):
        self._family, self._plan, self._target, self._weights = family, plan, target, weights
        # Seen from the cut layer, everything is kept and only padding is left to do.
        self._pad = {
            keep.index: LayerSlicer(family, plan.shape, LayerKeep.everything(place, keep.shape), target(place))
            for place, keep in enumerate(plan.layers)
        }
        self._cut = {keep.index: LayerSlicer(family, plan.source, keep) for keep in plan.layers}
        added = {name: coupling for name, coupling, _ in self._added()}
        strangers = sorted(
            name
            for name in weights
            if name not in names | set(added) or ((match := LAYER.fullmatch(name)) and int(match[1]) not in self._cut)
        )
        if strangers:
            raise PrunekitError(f"{strangers[0]} is given, but the pruned model has no such tensor.")
        # They are the reason why the others are there at all.
        missing = [name for name, coupling in added.items() if coupling.axis == 1 and name not in weights]
        if missing:
            raise PrunekitError(
                f"The plan adds biases that make good for what is cut, but {missing[0]} was not given; compute them "
                "with prunekit.recovery.flap_bias.compensate, or make a plan with another method."
            )

    @property
    def count(self) -> int:
        """Tensors that the source lacks."""
        return sum(1 for _ in self._added())

    def replaced(self, name: str, tensor: torch.Tensor) -> torch.Tensor | None:
        """What takes the place of the source's ``tensor`` of that name; None where nothing does."""
        if name not in self._weights:
            return None
        match = LAYER.fullmatch(name)
        if match is None:
            return self._checked(name, tensor.shape)
        index, own = int(match[1]), match[2]
        return self._padded(name, index, own, self._cut[index](own, tensor).shape)

    def added(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The biases that the source lacks, by their names in the source."""
        for name, coupling, place in self._added():
            keep = self._plan.layers[place]
            if name in self._weights:
                yield name, self._padded(name, keep.index, f"{coupling.module}.bias", self._bias(coupling, keep.shape))
            else:
                yield name, torch.zeros(self._bias(coupling, self._target(place)))

    def _added(self) -> Iterator[tuple[str, Coupling, int]]:
        for place, keep in enumerate(self._plan.layers):
            for coupling in self._family.couplings:
                if coupling.bias in self._plan.added_biases and coupling.kind not in keep.shape.removed:
                    yield f"model.layers.{keep.index}.{coupling.module}.bias", coupling, place

    def _bias(self, coupling: Coupling, layer: LayerShape) -> torch.Size:
        shape = self._plan.shape
        if coupling.axis == 1:
            return torch.Size([shape.hidden_size])
        return torch.Size([sum(unit_count(layer, part) * unit_rows(part, shape.head_dim) for part in coupling.parts)])

    def _padded(self, name: str, index: int, own: str, expected: torch.Size) -> torch.Tensor:
        return self._pad[index](own, self._checked(name, expected))

    def _checked(self, name: str, expected: torch.Size) -> torch.Tensor:
        given = self._weights[name]
        if given.shape != expected:
            raise PrunekitError(
                f"{name} is given with the shape {list(given.shape)}, but the plan makes it {list(expected)}."
            )
        return given.detach()


def with_biases(family: Family, config: Any, plan: Plan) -> Any:
    """A transformers config of ``family`` with the biases of ``plan`` switched on; ``config`` is left as it is.

    Raises PrunekitError where the family has no switch for one, or a switch would bring more than the plan counts.
    """
    if not plan.added_biases:
        return config
    config = copy.deepcopy(config)
    for flag in plan.added_biases:
        field = getattr(family, flag)
        if not isinstance(field, str):
            raise PrunekitError(f"{family.name} models have no {flag} that could be switched on; make the plan again.")
        setattr(config, field, True)
    for flag in BIASES:
        if family.flag(getattr(family, flag), config) != getattr(plan.shape, flag):
            raise PrunekitError(
                f"The plan adds {', '.join(plan.added_biases)}, which {family.name} models have only together with "
                f"{flag}; make the plan again."
            )
    return config
