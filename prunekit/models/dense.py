"""The dense model of a source, loaded when it is first asked for, and once for all steps of a pruning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prunekit.models import source as sources

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source


class DenseModel:
    """The model of ``source`` in ``dtype`` on ``device``, as :func:`prunekit.models.source.load_model` gives it.

    Steps that leave it as it is :meth:`share` it; a step that cuts it :meth:`take` s it, and whoever asks next gets
    another one, read from the disk again: a second copy in memory would cost as much as the model.
    """

    def __init__(self, source: Source, *, dtype: str = "auto", device: str = "auto"):
        self.source, self.dtype, self.device = source, dtype, device
        self._model: Any = None

    def share(self) -> Any:
        """The model, to be left as it is."""
        if self._model is None:
            self._model = sources.load_model(self.source, dtype=self.dtype, device=self.device)
        return self._model

    def take(self) -> Any:
        """The model, to be used up."""
        model, self._model = self.share(), None
        return model

    @contextmanager
    def computing_in(self, dtype: torch.dtype) -> Iterator[Any]:
        """The model as if it had been loaded as stored and then turned into ``dtype``, for a while. Weights that were
        rounded on the way here can't be had back: then it is another model, loaded for the purpose."""
        import torch

        stored, own = self.source.dtype, sources.pick_dtype(self.dtype) or self.source.dtype
        if own not in (stored, torch.float32):
            model = sources.load_model(self.source, device=self.device)
            yield model.to(dtype) if dtype != stored else model  # type: ignore[arg-type, call-arg]
            return
        model = self.share()
        if own == dtype:
            yield model
            return
        tensors = [(module, kind, name, tensor) for module, kind, name, tensor in _tensors(model, dtype != stored)]
        for module, kind, name, tensor in tensors:
            _put(module, kind, name, tensor.to(dtype) if tensor.is_floating_point() else tensor)
        try:
            yield model
        finally:
            for module, kind, name, tensor in tensors:
                _put(module, kind, name, tensor)


def _tensors(model: Any, buffers: bool) -> Iterator[tuple[Any, str, str, torch.Tensor]]:
    """Every parameter of ``model``, and its buffers where asked for: by module and name, and what it holds."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield module, "parameter", name, parameter.data
        for name, buffer in module._buffers.items() if buffers else ():
            if buffer is not None:
                yield module, "buffer", name, buffer


def _put(module: Any, kind: str, name: str, tensor: torch.Tensor) -> None:
    if kind == "buffer":
        module._buffers[name] = tensor
    else:
        module._parameters[name].data = tensor
