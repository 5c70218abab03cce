"""What optimize() has packed, and whether the model still is that: looked at before a prompt, never between tokens.

Decoding reads packed weights and calls almost none of the model's modules, so what is put into the model afterwards
(adapters, hooks, other weights, another dtype or device) would not count. In-place changes of weights do: packed
matrices are the very memory of the model's own, and the small float32 copies are made anew for every prompt.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.kernels.modules.packed import hooked
from prunekit.kernels.runtime.decoder import Decoder
from prunekit.models.families import Family

_OF_MODULES = (
    "scaling",  # attention's, and a rotary embedding's attention_scaling
    "sliding_window",
    "attn_logit_softcapping",
    "use_rope",
    "layer_type",
    "variance_epsilon",
    "eps",
)
_OF_CONFIG = ("sliding_window", "final_logit_softcapping", "attn_logit_softcapping", "rope_parameters")


@dataclass(frozen=True)
class _Part:
    """One module as it was: its children, its tensors and where they lie, and a forward of its own instance.

    ``module`` is None for the model itself, which holds the seal: a circle would keep its memory from being freed."""

    name: str
    module: nn.Module | None
    kind: type
    children: tuple[nn.Module | None, ...]
    tensors: tuple[torch.Tensor, ...]
    places: tuple[int, ...]
    forward: Any

    @classmethod
    def of(cls, name: str, module: nn.Module) -> _Part:
        tensors = _tensors(module)
        return cls(
            name,
            module if name else None,
            type(module),
            tuple(module._modules.values()),
            tensors,
            tuple(map(_place, tensors)),
            vars(module).get("forward"),
        )

    def same(self, root: nn.Module) -> bool:
        """As ``self.change(root) is None``, but quick: a model has hundreds of parts. ``root`` is the model itself."""
        module = root if self.module is None else self.module
        return not (
            module.__class__ is not self.kind
            or (self.children and tuple(module._modules.values()) != self.children)
            or len(module._modules) != len(self.children)
            or module._forward_hooks
            or module._forward_pre_hooks
            or "forward" in module.__dict__
        )

    def change(self, root: nn.Module) -> str | None:
        """What is different now, as the end of a sentence; None where nothing is."""
        module = root if self.module is None else self.module
        if type(module) is not self.kind:
            return "was parametrised or made another class"
        # Tuples of modules compare by identity.
        if tuple(module._modules.values()) != self.children:
            return "holds other modules than it did (an adapter, a layer, a replacement)"
        tensors = _tensors(module)
        if len(tensors) != len(self.tensors):
            return "holds other weights than it did"
        for now, before, place in zip(tensors, self.tensors, self.places, strict=True):
            if now is not before or _place(now) != place:
                return f"holds other weights than it did (now {now.dtype} on {now.device})"
        if vars(module).get("forward") is not self.forward:
            return "was given another forward"
        return "has a forward hook, which decoding does not call" if hooked(module) else None


@dataclass(frozen=True)
class Seal:
    """The whole of an optimised model. ``held`` are its tensors, each with who holds it and where it lies, ``counts``
    how many each holds; ``numbers`` and ``settings`` what decoding took from modules and the config, ``copies`` the
    tensors whose float32 copies it reads, by the offset that is added to them."""

    root: weakref.ref[nn.Module] | None
    parts: tuple[_Part, ...]
    held: tuple[tuple[dict[str, Any], str, torch.Tensor, int], ...]
    counts: tuple[tuple[dict[str, Any], int], ...]
    decoder: Decoder
    numbers: tuple[tuple[dict[str, Any], str, Any], ...]
    settings: tuple[list[Any], list[Any]]
    copies: tuple[tuple[float, list[torch.Tensor], list[torch.Tensor]], ...]
    advice: str

    @classmethod
    def of(cls, model: Any, family: Family, decoder: Decoder, weights: str) -> Seal:
        """Seal a ``model`` that has just been packed into ``decoder``."""
        copies: dict[float, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for offset, target, source in _copies(model, family, decoder):
            if target.data_ptr() != source.data_ptr():
                both = copies.setdefault(offset, ([], []))
                both[0].append(target)
                both[1].append(source.detach())
        parts = tuple(_Part.of(name, module) for name, module in model.named_modules())
        advice = (
            "Call prunekit.kernels.restore(model), merge adapters, remove hooks, and optimise it again"
            if weights == "keep"
            else "Load the model again, change it, and optimise it then"
        )
        holders = [held for module in model.modules() for held in _holders(module) if held]
        return cls(
            weakref.ref(model),
            parts,
            tuple(
                (held, name, tensor, tensor.data_ptr())
                for held in holders
                for name, tensor in held.items()
                if tensor is not None and _place(tensor)
            ),
            tuple((held, len(held)) for held in holders),
            decoder,
            tuple(_numbers(model)),
            (_settings(model.config), _rope(model.model.rotary_emb)),
            tuple((key, *both) for key, both in copies.items()),
            advice,
        )

    def _is_of(self, root: object) -> bool:
        return self.root is not None and self.root() is root

    def check(self, model: Any) -> None:
        """Raises PrunekitError where ``model`` is no longer what was packed. Touches no weight and waits for no GPU."""
        root: Any = unwrapped(model)
        if not self._is_of(root):
            raise PrunekitError(
                f"This is a {type(model).__name__} around, or a copy of, the model that optimize() was called on, and "
                f"decoding would not run what is different. {self.advice}."
            )
        if root.training:
            raise PrunekitError("The model is in training mode, which decoding knows nothing of; call model.eval().")
        embedding = self.decoder.embed.weight
        if (embedding.device, embedding.dtype) != (self.decoder.device, self.decoder.dtype):
            raise PrunekitError(
                f"The model was moved to {embedding.device} or cast to {embedding.dtype} after optimize(). "
                f"{self.advice}."
            )
        quick = all(
            held.get(name) is tensor and tensor.data_ptr() == place for held, name, tensor, place in self.held
        ) and all(len(held) == count for held, count in self.counts)
        for part in self.parts:
            if not (quick and part.same(root)) and (what := part.change(root)):
                raise PrunekitError(f"{part.name or 'The model'} {what} after optimize(). {self.advice}.")
        same = all(held.get(name) == value for held, name, value in self.numbers)
        if not same or (_settings(root.config), _rope(root.model.rotary_emb)) != self.settings:
            raise PrunekitError(f"The model's config or rotary embedding changed after optimize(). {self.advice}.")

    def __getstate__(self) -> dict[str, Any]:
        # What is pickled is packed anew where it is read, or refused.
        return {**vars(self), "root": None}

    def refresh(self) -> None:
        """Copy norms and biases anew: they may have been changed in place."""
        for offset, targets, sources in self.copies:
            torch._foreach_copy_(targets, sources)
            if offset:
                torch._foreach_add_(targets, offset)


def unwrapped(model: Any) -> Any:
    """The model below torch.compile's wrapper, which adds nothing."""
    return getattr(model, "_orig_mod", model)


def _holders(module: nn.Module) -> tuple[dict[str, Any], ...]:
    # Some rotary embeddings keep other frequencies after a long text: _settings tells what of them matters.
    rotary = any(name.endswith("inv_freq") for name in module._buffers)
    return (module._parameters,) if rotary else (module._parameters, module._buffers)


def _tensors(module: nn.Module) -> tuple[torch.Tensor, ...]:
    return tuple(tensor for held in _holders(module) for tensor in held.values() if tensor is not None)


def _place(tensor: torch.Tensor) -> int:
    # A library's quantised tensors have no memory of their own.
    return 0 if hasattr(tensor, "__tensor_flatten__") else tensor.data_ptr()


def _settings(config: Any) -> list[Any]:
    return [copy.deepcopy(getattr(config, name, None)) for name in _OF_CONFIG]


def _numbers(model: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(attributes of a module, name, value) of what decoding took from layers and rotary embeddings."""
    for module in model.model.modules():
        held = vars(module)
        yield from ((held, name, held[name]) for name in held if name.endswith(_OF_MODULES))


def _rope(rotary: nn.Module) -> list[tuple[str, int, int]]:
    """Where the frequencies lie, and how often they were changed in place."""
    return [
        (name, buffer.data_ptr(), 0 if buffer.is_inference() else buffer._version)
        for name, buffer in rotary._buffers.items()
        if buffer is not None and name.endswith("original_inv_freq")
    ]


def _copies(model: Any, family: Family, decoder: Decoder) -> Iterator[tuple[float, torch.Tensor, torch.Tensor]]:
    """(offset, copy, the model's own) of every norm and bias that decoding reads."""
    for layer, block in zip(model.model.layers, decoder.blocks, strict=True):
        attention, ffn = layer.self_attn, block.ffn
        for place, name in vars(family.block_norms).items():
            if name is not None:
                yield family.norm_offset, getattr(block, place), getattr(layer, name).weight
        for name in ("q_norm", "k_norm"):
            if (copied := getattr(block, name)) is not None:
                yield family.norm_offset, copied, getattr(attention, name).weight
        first = 0
        for linear in _linears(attention, ("qkv_proj", "q_proj", "k_proj", "v_proj")):
            last = first + linear.out_features
            if linear.bias is not None:
                yield 0.0, block.qkv.bias[first:last], linear.bias
            first = last
        for linear in _linears(attention, ("o_proj",)):
            if linear.bias is not None:
                yield 0.0, block.o.bias, linear.bias
        for row, linear in enumerate(_linears(layer.mlp, ("gate_proj", "up_proj"))):
            if linear.bias is not None:
                yield 0.0, ffn.gate_up_bias[row, : ffn.width], linear.bias
        for linear in _linears(layer.mlp, ("down_proj",)):
            if linear.bias is not None:
                yield 0.0, ffn.down_bias, linear.bias
    yield family.norm_offset, decoder.final_norm, model.model.norm.weight
    if model.lm_head.bias is not None and decoder.head.bias is not None:
        yield 0.0, decoder.head.bias, model.lm_head.bias


def _linears(owner: nn.Module, names: tuple[str, ...]) -> list[nn.Linear]:
    """Those of the projections that still are the model's own: rounded ones have gone."""
    found = (owner._modules.get(name) for name in names)
    return [linear for linear in found if isinstance(linear, nn.Linear)]
