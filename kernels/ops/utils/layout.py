"""How weights lie in memory so that an irregular width costs nothing: padded.

Done when a model is loaded; a checkpoint never holds any of it.

Irregular widths hurt where they are the contiguous axis of a matrix: rows then start at odd addresses. Of a gated FFN
that is only ``down_proj`` [hidden, F] and the activation [rows, F]; both are padded to 16. Neurons that don't exist get
zero rows in gate and up and zero columns in down, so that act(0) · 0 = 0 fills the activation's pads by itself and no
kernel needs a mask along F.
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
    """The weights of one gated FFN of ``width`` F neurons, padded with zeros to Fp = ``padded(F)``.

    ``gate_up`` [2, Fp, hidden] and ``down`` [hidden, Fp] in the model's dtype; ``gate_up_bias`` [2, Fp] and
    ``down_bias`` [hidden] are float32 or None.
    """

    width: int
    gate_up: torch.Tensor
    down: torch.Tensor
    gate_up_bias: torch.Tensor | None = None
    down_bias: torch.Tensor | None = None

    @property
    def extra_bytes(self) -> int:
        """Bytes of the pads: what this layout takes beyond the checkpoint's weights."""
        hidden, stored = self.down.shape
        return 3 * (stored - self.width) * hidden * self.down.element_size()


def pack_ffn(
    gate: torch.Tensor,
    up: torch.Tensor,
    down: torch.Tensor,
    gate_bias: torch.Tensor | None = None,
    up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    multiple: int = ALIGNMENT,
) -> PackedFFN:
    """Pack ``gate`` and ``up`` [F, hidden] and ``down`` [hidden, F] as nn.Linear holds them. A ``down`` that needs no
    pads is not copied."""
    width, hidden = gate.shape
    rows = padded(width, multiple)
    gate_up = gate.new_zeros(2, rows, hidden)
    gate_up[0, :width], gate_up[1, :width] = gate, up
    packed_down = down
    if rows != width or not down.is_contiguous():
        packed_down = down.new_zeros(hidden, rows)
        packed_down[:, :width] = down
    bias = None
    if gate_bias is not None and up_bias is not None:
        bias = torch.zeros(2, rows, dtype=torch.float32, device=gate.device)
        bias[0, :width], bias[1, :width] = gate_bias, up_bias
    return PackedFFN(width, gate_up, packed_down, bias, None if down_bias is None else down_bias.float())
