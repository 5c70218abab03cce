"""Adapters of low rank as what is trained: the weights they stand beside never move, and take them in at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prunekit.errors import PrunekitError
from prunekit.recovery.training.student import Student
from prunekit.utils.provenance import install_extra, installed

if TYPE_CHECKING:
    from prunekit.models.source import Source
    from prunekit.plan.training import TrainingConfig

# Of the adapters' weights: what is added is twice the product of the two factors, at every rank.
_ALPHA_PER_RANK = 2
_NAME = "default"
# How peft names a layer's own weights, and its adapters'.
_BASE, _ADAPTER = ".base_layer.", ".lora_"


def check_peft() -> None:
    """Raises PrunekitError where the library of adapters is missing."""
    if installed("peft") is None:
        raise PrunekitError(f"Adapters (--set lora=...) need the package peft: {install_extra('lora')}.")


class LoraStudent(Student):
    """A student of which adapters (Hu et al., LoRA, arXiv 2106.09685) of every linear layer of the blocks move, as peft
    has them, and nothing else does. The head and the embeddings have none."""

    _tuner: Any

    def _release(self, config: TrainingConfig) -> None:
        check_peft()
        from peft import LoraConfig, LoraModel

        adapters = LoraConfig(
            r=config.lora, lora_alpha=_ALPHA_PER_RANK * config.lora, target_modules="all-linear", lora_dropout=0.0
        )
        cuda = [self.device] if self.device.type == "cuda" else []
        # One factor is random, the other 0; whoever draws numbers elsewhere changes nothing here.
        with torch.random.fork_rng(devices=cuda):
            torch.manual_seed(0)
            self._tuner = LoraModel(self.model, adapters, _NAME)

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.own_weights()

    def own_weights(self) -> Mapping[str, torch.Tensor]:
        return dict(self.model.state_dict()) if self._tuner is None else _Merged(self.model)

    def adapters(self) -> dict[str, torch.Tensor]:
        return {} if self._tuner is None else {name: each.detach() for name, each in self.parameters.items()}

    @torch.no_grad()
    def round_to(self, dtype: str, source: Source) -> None:
        if self._tuner is not None:
            self._tuner.merge_and_unload()
            self._tuner = None
        super().round_to(dtype, source)

    @torch.no_grad()
    def load(self, folder: Path, adapters: Mapping[str, torch.Tensor]) -> None:
        """Go on with ``adapters`` beside the weights that the training began with. Where there are none, the weights of
        ``folder`` hold them already, and the adapters are gone."""
        if not adapters:
            if self._tuner is not None:
                self._tuner.unload()
                self._tuner = None
            super().load(folder, {})
            return
        for name, own in self.parameters.items():
            kept = adapters.get(name)
            if kept is None or kept.shape != own.shape:
                raise PrunekitError(
                    f"{folder} lacks the adapter {name}; it is damaged. Delete it to go on from an earlier checkpoint."
                )
            own.copy_(kept)


class _Merged(Mapping[str, torch.Tensor]):
    """The weights of an adapted model with their adapters taken in, by the names that they have without: each is added
    when it is asked for, so that no second model is held."""

    def __init__(self, model: Any):
        self._model, self._own = model, model.state_dict()
        self._names = {name.replace(_BASE, "."): name for name in self._own if _ADAPTER not in name}

    @torch.no_grad()
    def __getitem__(self, name: str) -> torch.Tensor:
        full = self._names[name]
        own: torch.Tensor = self._own[full]
        place, base, kind = full.partition(_BASE)
        return own + self._model.get_submodule(place).get_delta_weight(_NAME) if base and kind == "weight" else own

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
