"""NaN and infinity: one rule for every tensor that is read, computed or written, and one way to name its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import PrunekitError

_IN_LAYER = re.compile(r"(?:model\.)?layers\.(\d+)\.(.+)")
_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_OVERFLOW = "Compute in float32 (--dtype float32); if that is not finite either, the checkpoint is damaged."


class NotFinite(PrunekitError):
    """NaN or infinity where there must be numbers: nothing else about that model can be known."""


def is_finite(tensor: torch.Tensor) -> bool:
    """False where ``tensor`` holds NaN or infinity. One pass without a mask as large as the tensor: its extremes carry
    both."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype not in _FLOATS:
        tensor = tensor.float()
    return bool(torch.stack(tensor.detach().aminmax()).isfinite().all())


def place_of(name: str) -> str:
    """A tensor as sentences name it: ``Layer 3: mlp.up_proj.weight``, or its own name outside the layers."""
    match = _IN_LAYER.fullmatch(name)
    return f"Layer {match[1]}: {match[2]}" if match else name


def check_weight(name: str, tensor: torch.Tensor) -> None:
    """Raises PrunekitError where the weight ``name``, as a checkpoint holds it, is not finite."""
    if not is_finite(tensor):
        raise NotFinite(
            f"{place_of(name)} holds NaN or infinite weights. The checkpoint is damaged; download or convert it again."
        )


def check_made(name: str, tensor: torch.Tensor) -> None:
    """Raises PrunekitError where ``tensor``, which prunekit computed to be written as the weight ``name``, is not
    finite."""
    if not is_finite(tensor):
        raise NotFinite(f"{place_of(name)} came out as NaN or infinity. {_OVERFLOW}")


def check_computed(values: torch.Tensor | float, index: int | None, what: str) -> None:
    """Raises PrunekitError where a result that decides something is not finite: ``what`` of layer ``index`` (None: of
    the whole model), a plural."""
    if not is_finite(torch.as_tensor(values)):
        place = "" if index is None else f"Layer {index}: "
        raise NotFinite(f"{place}{what} are not finite. {_OVERFLOW}")


def first_not_finite(named: Iterable[tuple[str, torch.Tensor]]) -> str | None:
    """The name of the first tensor that is not finite, None where all are. A GPU is waited for once."""
    names, found = [], []
    for name, tensor in named:
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type != "meta":
            names.append(name)
            values = tensor.detach() if tensor.dtype in _FLOATS else tensor.detach().float()
            found.append(torch.stack(values.aminmax()).isfinite().all())
    if not found:
        return None
    good = torch.stack([each.to(found[0].device) for each in found]).tolist()
    return next((name for name, fine in zip(names, good, strict=True) if not fine), None)


def check_fits(named: Iterable[tuple[str, torch.Tensor]], dtype: str) -> None:
    """Raises PrunekitError where a weight is too large for ``dtype``, such as float16."""
    most = torch.finfo(getattr(torch, dtype)).max
    for name, tensor in named:
        if float(torch.stack(tensor.detach().aminmax()).abs().max()) > most:
            raise PrunekitError(f"{place_of(name)} holds numbers too large for {dtype}; take fp32 instead.")


def blame_layer(model: Any, run: Callable[[], Any], name: str | None = None) -> None:
    """Repeat ``run``, in which ``model`` gave something that is not finite, to find out where. Raises PrunekitError
    where a layer's output is at fault; ``name`` is the model's, where there are several."""
    try:
        with torch.inference_mode(), watched_layers(model.get_submodule("model.layers")):
            run()
    except PrunekitError as error:
        raise type(error)(f"{name}: {error}" if name else str(error)) from None


def check_files(files: Iterable[Path]) -> None:
    """Raises PrunekitError where a tensor of these safetensors files is not finite."""
    # Kernels are checked on GPU machines that have torch and Triton alone.
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as handle:
            for name in sorted(handle.keys()):
                check_weight(name, handle.get_tensor(name))


@contextmanager
def in_layer(index: int) -> Iterator[None]:
    """A PrunekitError of the block names the layer it happened in."""
    try:
        yield
    except PrunekitError as error:
        said = str(error)
        raise type(error)(said if said.startswith("Layer ") else f"Layer {index}: {said}") from None


@contextmanager
def watched_layers(layers: Iterable[Any]) -> Iterator[None]:
    """While the block runs, a decoder layer whose output is not finite raises PrunekitError, which names it."""

    def look(index: int, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        check_computed(hidden.detach(), index, "its outputs")

    handles = [
        layer.register_forward_hook(lambda module, args, output, index=index: look(index, output))
        for index, layer in enumerate(layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
