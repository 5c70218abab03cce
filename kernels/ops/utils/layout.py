"""How weights lie in memory so that an irregular width costs nothing: padded and neuron-major.

Done when a model is loaded; a checkpoint never holds any of it.

Irregular widths hurt where they are the contiguous axis of a matrix: rows then start at odd addresses. Of a gated FFN
that is only ``down_proj`` [hidden, F] and the activation [rows, F]. Stored neuron-major, ``down_t`` [F, hidden], the
matrix has none; the activation is padded to 16. Neurons that don't exist get zero rows in all three matrices, so that
act(0) · 0 = 0 fills the activation's pads by itself and no kernel needs a mask along F.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Elements: 32 bytes of a 16-bit dtype. 8 elements are slower than an odd count on some GPUs (notes: RTX 4090), and
# Triton knows of an integer argument only whether 16 divides it.
ALIGNMENT = 16


def padded(width: int, multiple: int = ALIGNMENT) -> int:
    """``width`` rounded up to a multiple."""
    return -(-width // multiple) * multiple


@dataclass(frozen=True)
class PackedFFN:
    """The weights of one gated FFN of ``width`` F neurons, padded to Fp = ``padded(F)`` rows of zeros.

    ``gate_up`` [2, Fp, hidden] and ``down_t`` [Fp, hidden] in the model's dtype; ``gate_up_bias`` [2, Fp] and
    ``down_bias`` [hidden] are float32 or None.
    """

    width: int
    gate_up: torch.Tensor
    down_t: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    @property
    def extra_bytes(self) -> int:
        """Bytes of the pads: what this layout takes beyond the checkpoint's weights."""
        rows = self.down_t.shape[0] - self.width
        return 3 * rows * self.down_t.shape[1] * self.down_t.element_size()


def pack_ffn(
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    multiple: int = ALIGNMENT,
) -> PackedFFN:
    """Pack ``gate`` and ``up`` [F, hidden] and ``down`` [hidden, F] as nn.Linear holds them."""
    width, hidden = gate.shape
    rows = padded(width, multiple)
    gate_up = gate.new_zeros(2, rows, hidden)
    gate_up[0, :width], gate_up[1, :width] = gate, up
    down_t = down.new_zeros(rows, hidden)
    down_t[:width] = down.T
    bias = None
    if gate_bias is not None and up_bias is not None:
        bias = torch.zeros(2, rows, dtype=torch.float32, device=gate.device)
        bias[0, :width], bias[1, :width] = gate_bias, up_bias
    return PackedFFN(width, gate_up, down_t, bias, None if down_bias is None else down_bias.float())
