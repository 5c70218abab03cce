"""A gated FFN for any number of rows behind one op, so that an exported graph needs no branch on it."""

import torch

from prunekit.kernels.ops.mlp.decode import mlp_decode
from prunekit.kernels.ops.mlp.prefill import mlp_prefill
from prunekit.kernels.ops.utils.backend import by_pieces, decode_pieces


@torch.library.custom_op("prunekit::mlp", mutates_args=())
def mlp(
    x: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    activation: str,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    gate_up_scale: torch.Tensor | None = None,
    down_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """down(act(gate(norm(x))) · up(norm(x))) + residual; [rows, hidden] in the dtype of ``x``.

    ``x`` [rows, hidden] is contiguous; ``gate_up`` [2, Fp, hidden] and ``down`` [hidden, Fp] are in the dtype of
    ``x`` or int8 with ``gate_up_scale`` [2, Fp] and ``down_scale`` [hidden], in the layout of
    :class:`prunekit.kernels.ops.utils.layout.PackedFFN`. Biases [2, Fp] and [hidden], scales and ``norm_weight``
    [hidden] are float32; without ``norm_weight`` there is no norm. ``activation`` is ``silu`` or ``gelu_tanh``.

    1 to 16 rows, and up to 64 of int8, take :mod:`prunekit.kernels.ops.mlp.decode`, more
    :mod:`prunekit.kernels.ops.mlp.prefill`.
    """
    rest = (norm_weight, eps, gate_up_bias, down_bias, gate_up_scale, down_scale)
    pieces = decode_pieces(x, gate_up_scale is not None)
    if not pieces:
        return mlp_prefill(x, gate_up, down, activation, *rest, residual)
    return by_pieces(pieces, x, residual, lambda x, residual: mlp_decode(x, gate_up, down, activation, *rest, residual))


@mlp.register_fake
def _(x, *rest, **options):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)
