"""The pruned model while it is trained: which of its weights move, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from prunekit.checkpoint.rebuild import stored_dtype
from prunekit.errors import PrunekitError
from prunekit.models.folder import weight_files
from prunekit.models.head import Head, hidden_states
from prunekit.recovery.training.sharding import take, whole
from prunekit.utils.numerics.recompute import recomputing

if TYPE_CHECKING:
    from prunekit.data.packed.windows import Windows
    from prunekit.models.source import Source
    from prunekit.plan.training import TrainingConfig


class Student:
    """``model`` with float32 weights, of which :attr:`parameters` move, by their names, tied ones once. ``computing``
    gives the context that products are computed in; ``recompute`` trades time for memory."""

    def __init__(
        self,
        model: Any,
        config: TrainingConfig,
        computing: Callable[[], AbstractContextManager[Any]],
        *,
        fast: bool = False,
        recompute: bool = False,
    ):
        self.model, self._computing, self.recompute = model, computing, recompute
        self._separate = config.documents == "separate"
        model.requires_grad_(False)
        self._release(config)
        self.parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        # A head whose weights stay is brought to bfloat16 once.
        self.head = Head(model, fast and config.train != "all")

    def _release(self, config: TrainingConfig) -> None:
        """Let the weights that ``config`` trains ask for gradients, none of which does."""
        moving = self.model if config.train == "all" else self.model.base_model
        embeddings = {id(each) for each in self.model.get_input_embeddings().parameters()}
        for parameter in moving.parameters():
            if config.train == "all" or id(parameter) not in embeddings:
                if parameter.dtype != torch.float32:
                    raise PrunekitError(f"Weights are trained in float32, and the model is in {parameter.dtype}.")
                parameter.requires_grad_(True)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def hidden(self, windows: Windows) -> torch.Tensor:
        """Final hidden states [B, L, hidden_size] of the windows, under autograd where it is on."""
        recompute = self.recompute and torch.is_grad_enabled()
        with self._computing(), recomputing(self.model.base_model.layers, recompute):
            return hidden_states(self.model, windows.ids, windows.documents if self._separate else None)

    def computing(self) -> AbstractContextManager[Any]:
        return self._computing()

    def clear(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def round_to(self, dtype: str, source: Source) -> None:
        """Round every weight to what it will be stored in: ``dtype``, or with auto as ``source`` stores it."""
        wanted = stored_dtype(dtype) or source.dtype
        for tensor in self.model.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(wanted).to(tensor.dtype))

    def weights(self) -> Mapping[str, torch.Tensor]:
        """Every weight of the model as it is now, by its name; on rank 0 alone where there are several, which all ask
        together."""
        return whole(self.own_weights())

    def own_weights(self) -> Mapping[str, torch.Tensor]:
        """The same as this rank has them."""
        own: Mapping[str, torch.Tensor] = self.model.state_dict()
        return own

    def adapters(self) -> dict[str, torch.Tensor]:
        """What else a training must keep: nothing, where the weights themselves move."""
        return {}

    @torch.no_grad()
    def load(self, folder: Path, adapters: Mapping[str, torch.Tensor]) -> None:
        """Take the weights of the checkpoint ``folder``, which has the same ones, or go on with its ``adapters`` where
        those are what is trained."""
        own = self.model.state_dict()
        for name, tensor in stored(folder):
            take(own[name], tensor)


def stored(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a checkpoint that prunekit wrote, one at a time."""
    for file in weight_files(folder):
        with safe_open(file, "pt") as handle:
            for name in handle.keys():  # noqa: SIM118  (a handle is no dict)
                yield name, handle.get_tensor(name)
