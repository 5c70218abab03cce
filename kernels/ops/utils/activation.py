"""The activations of a gated FFN, for kernels and for PyTorch: ``silu`` and ``gelu_tanh``."""

import torch
import torch.nn.functional as F

from prunekit.kernels.ops.utils._triton import jit, tl

ACTIVATIONS = ("silu", "gelu_tanh")


@jit
def activate(gate, ACTIVATION: tl.constexpr):
    """act(gate) in float32. tanh is written as a sigmoid: the interpreter has no tanh, and a GPU's is no faster."""
    if ACTIVATION == "silu":
        return gate * tl.sigmoid(gate)
    # 2·√(2/π)
    return gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))


@jit
def capped(logits, softcap):
    """softcap · tanh(logits / softcap), of logits that are already divided by it, through an exponential that never
    overflows."""
    small = tl.exp(-2.0 * tl.abs(logits))
    bent = (1.0 - small) / (1.0 + small)
    return softcap * tl.where(logits < 0, -bent, bent)


def activate_torch(gate: torch.Tensor, activation: str) -> torch.Tensor:
    """The same in PyTorch. Raises ValueError for another name."""
    check_activation(activation)
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


def check_activation(activation: str) -> None:
    """Raises ValueError where there is no kernel for the activation."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"There is no kernel for the activation {activation!r}; these work: {', '.join(ACTIVATIONS)}.")
