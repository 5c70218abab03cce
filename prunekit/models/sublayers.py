"""A decoder taken apart: the attention and the FFN of any layer, run by themselves on hidden states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import PrunekitError
from prunekit.models.families import Coupling, Family
from prunekit.plan.shape import Kind
from prunekit.utils.numerics.bf16 import fast_products
from prunekit.utils.numerics.finite import watched_layers

KINDS: tuple[Kind, ...] = ("attention", "ffn")


# Tokens whose activations stay in a CPU's caches between one operation and the next.
_CACHED_TOKENS = 1024


def sequences_at_a_time(batch_size: int, length: int, device: Any) -> int:
    """How many of ``batch_size`` sequences of ``length`` tokens are best computed together: CPUs are fastest with
    few."""
    if torch.device(device).type != "cpu":
        return batch_size
    return max(1, min(batch_size, _CACHED_TOKENS // length))


class _Reached(Exception):
    """Ends a forward pass at the first decoder layer."""


@dataclass(frozen=True)
class _Names:
    """Where a kind of sub-layer lies in a decoder layer."""

    module: str
    before: str | None
    after: str | None
    output: Coupling


class Sublayers:
    """``model`` (a causal LM of ``family``) as a run of residual sub-layers x += post(f(pre(x))).

    What the model hands its attentions beside the hidden states (masks, rotary embeddings) is caught in one forward
    pass and used again, so that every batch must have sequences of one ``length``. Nothing of the model is changed.
    ``layer`` in the methods is a decoder layer: the model's own, or one cut down to fewer units. ``fast`` allows
    :func:`~prunekit.utils.numerics.bf16.fast_products` in :meth:`run` and :meth:`project`.
    """

    def __init__(self, model: Any, family: Family, length: int, fast: bool = False):
        self.fast = fast
        self.model = model
        self.family = family
        self.length = length
        self.layers: nn.ModuleList = model.get_submodule("model.layers")
        norms = family.block_norms
        outputs = {coupling.parts[0]: coupling for coupling in family.output_projections()}
        self._names: dict[Kind, _Names] = {
            "attention": _Names("self_attn", norms.pre_attention, norms.post_attention, outputs["query"]),
            "ffn": _Names("mlp", norms.pre_ffn, norms.post_ffn, outputs["ffn"]),
        }
        self._arguments: dict[int, list[dict[str, Any]]] = {}

    def at_a_time(self, batch_size: int) -> int:
        """:func:`sequences_at_a_time` for this model and length."""
        return sequences_at_a_time(batch_size, self.length, self.model.get_input_embeddings().weight.device)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [B, L, d] that enter the first layer for ``ids`` [B, L]."""
        caught: list[torch.Tensor] = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        handle = self.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._forward(ids)
        except _Reached:
            pass
        finally:
            handle.remove()
        return caught[0]

    def output(self, kind: Kind) -> Coupling:
        """How the output projection (o_proj or down_proj) hangs together with the sub-layer's units."""
        return self._names[kind].output

    def output_name(self, kind: Kind) -> str:
        """The output projection's name in a layer: that of o_proj or down_proj."""
        return self.output(kind).module

    def projection(self, layer: nn.Module, kind: Kind) -> nn.Linear:
        """The sub-layer's output projection."""
        module: Any = layer.get_submodule(self.output_name(kind))
        return module

    def entrance(self, layer: nn.Module, kind: Kind) -> nn.Module:
        """The module that the residual stream enters before the sub-layer."""
        names = self._names[kind]
        return layer.get_submodule(names.before or names.module)

    def has_post_norm(self, kind: Kind) -> bool:
        return self._names[kind].after is not None

    def normed(self, layer: nn.Module, kind: Kind, hidden: torch.Tensor) -> torch.Tensor:
        """What enters the sub-layer for residual-stream states ``hidden`` [B, L, d]."""
        before = self._names[kind].before
        made: torch.Tensor = layer.get_submodule(before)(hidden) if before else hidden
        return made

    def run(self, layer: nn.Module, index: int, kind: Kind, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What enters the output projection, [B, L, n], and what leaves it, [B, L, d], for the sub-layer's input
        ``normed`` [B, L, d]. ``index`` is the layer's place in the model."""
        known = self.arguments(index, len(normed)) if kind == "attention" else {}
        inputs: list[torch.Tensor] = []
        handle = self.projection(layer, kind).register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        module = layer.get_submodule(self._names[kind].module)
        try:
            with fast_products(normed.device, self.fast):
                output = module(hidden_states=normed, **known) if kind == "attention" else module(normed)
        finally:
            handle.remove()
        return inputs[0], output[0] if isinstance(output, tuple) else output

    def project(self, layer: nn.Module, kind: Kind, z: torch.Tensor) -> torch.Tensor:
        """What leaves the output projection, [B, L, d], for what enters it."""
        projection = self.projection(layer, kind)
        with fast_products(z.device, self.fast):
            return nn.functional.linear(z.to(projection.weight.dtype), projection.weight, projection.bias)

    def added(self, layer: nn.Module, kind: Kind, output: torch.Tensor) -> torch.Tensor:
        """What a sub-layer whose projection gave ``output`` adds to the residual stream."""
        after = self._names[kind].after
        made: torch.Tensor = layer.get_submodule(after)(output) if after else output
        return made

    def residual(self, layer: nn.Module, kind: Kind, known: dict[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
        """The sub-layer as one function of the residual stream [B, L, d], with nothing watched, for timing. ``known``
        is what attention is handed beside its input (:meth:`arguments`)."""
        names = self._names[kind]
        before, after = (layer.get_submodule(name) if name else None for name in (names.before, names.after))
        module = layer.get_submodule(names.module)

        def run(hidden: torch.Tensor) -> torch.Tensor:
            normed = hidden if before is None else before(hidden)
            output = module(hidden_states=normed, **known)[0] if kind == "attention" else module(normed)
            made: torch.Tensor = hidden + (output if after is None else after(output))
            return made

        return run

    def arguments(self, index: int, batch: int) -> dict[str, Any]:
        """What the model hands the attention of layer ``index`` beside the hidden states of ``batch`` sequences."""
        if batch not in self._arguments:
            self._arguments[batch] = self._catch(batch)
        return self._arguments[batch][index]

    def _catch(self, batch: int) -> list[dict[str, Any]]:
        """The attentions' arguments for batches of that size; the first time also proves that layers are made as
        described."""
        caught: list[dict[str, Any]] = []
        seen: list[torch.Tensor] = []
        handles = []

        def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append({name: value for name, value in kwargs.items() if name != "hidden_states"})

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        for layer in self.layers:
            handles.append(layer.get_submodule("self_attn").register_forward_pre_hook(catch, with_kwargs=True))
        for layer in self.layers[:2]:
            handles.append(layer.register_forward_pre_hook(look, with_kwargs=True))
        generator = torch.Generator().manual_seed(0)
        try:
            self._forward(torch.randint(0, self.model.config.vocab_size, (batch, self.length), generator=generator))
        finally:
            for handle in handles:
                handle.remove()
        self._arguments[batch] = caught
        if len(self._arguments) == 1 and len(seen) > 1:
            self._check(seen[0], seen[1])
        return caught

    def _check(self, first: torch.Tensor, second: torch.Tensor) -> None:
        hidden, layer = first, self.layers[0]
        for kind in KINDS:
            _, output = self.run(layer, 0, kind, self.normed(layer, kind, hidden))
            hidden = hidden + self.added(layer, kind, output)
        error = (hidden - second).float().norm() / (second - first).float().norm().clamp(min=1e-12)
        if not error < 0.05:
            raise PrunekitError(
                f"Layers of {self.family.name} are not put together as prunekit expects in this transformers "
                "version, so nothing can be refitted; prune with refit=false, and report this."
            )

    def _forward(self, ids: torch.Tensor) -> None:
        device = self.model.get_input_embeddings().weight.device
        with watched_layers(self.layers):
            self.model.base_model(input_ids=ids.to(device), use_cache=False)
