"""One decoder layer as the runtime sees it: packed weights, and what happens between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from prunekit.kernels.modules.packed import PackedLinear
from prunekit.kernels.ops.attention.qkv_rope import qkv_rope
from prunekit.kernels.ops.attention.rope_cache import rope_cache
from prunekit.kernels.ops.rms_norm import add_rms_norm, rms_norm_add
from prunekit.kernels.ops.utils.backend import MAX_DECODE_ROWS
from prunekit.kernels.runtime.kv_cache import LayerCache

# (queries [tokens, heads, head_dim], cache) -> [tokens, heads, head_dim]
Attend = Callable[["Block", torch.Tensor, LayerCache], torch.Tensor]

# The name of the rotary table of a model that has only one.
ALL = "all"


@dataclass(frozen=True)
class Where:
    """The place of every token of a forward: ``positions`` and cache ``rows``, int32 [tokens].

    ``in_order`` says that token i is the one new token of cache row i, as in a decode step.
    """

    positions: torch.Tensor
    rows: torch.Tensor
    in_order: bool


@dataclass(frozen=True)
class Rope:
    """cos and sin of every position, float32 [positions, rotated channels / 2]."""

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass
class Block:
    """A decoder layer. Norm weights are float32, [hidden_size]; None where the family has no norm at that place.

    ``rope`` names the table of the model that the layer rotates by; None for a layer without positions. ``window``
    and ``softcap`` are 0 where there is none.
    """

    qkv: Any
    o: Any
    ffn: Any
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    scaling: float
    window: int
    softcap: float
    rope: str | None
    eps: float
    pre_attention: torch.Tensor | None
    post_attention: torch.Tensor | None
    pre_ffn: torch.Tensor | None
    post_ffn: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None

    @property
    def fuses_qkv(self) -> bool:
        """True where norm, QKV, RoPE and cache write are one launch: q/k norms need a whole head's (or all heads')
        result first, and 4-bit products are a library's."""
        return self.q_norm is None and isinstance(self.qkv, PackedLinear)

    def __call__(
        self, x: torch.Tensor, cache: LayerCache, where: Where, ropes: dict[str, Rope], attend: Attend
    ) -> torch.Tensor:
        """[tokens, hidden_size] → the same; keys and values of the tokens go into ``cache``."""
        query = self._queries(x, cache, where, ropes[self.rope] if self.rope else None)
        mixed = attend(self, query, cache).flatten(1)
        if self.post_attention is None and self.pre_ffn is not None and len(x) > MAX_DECODE_ROWS:
            # Many rows: the sum and the norm after it read and write them once.
            normed, x = add_rms_norm(self.o.apply_to(mixed), x, self.pre_ffn, self.eps)
            return self._add(self.ffn, normed, x, None, self.post_ffn)
        x = self._add(self.o, mixed, x, None, self.post_attention)
        return self._add(self.ffn, x, x, self.pre_ffn, self.post_ffn)

    def _queries(self, x: torch.Tensor, cache: LayerCache, where: Where, rope: Rope | None) -> torch.Tensor:
        cos, sin = (rope.cos, rope.sin) if rope else (None, None)
        heads, key, value = self.num_attention_heads, cache.key, cache.value
        if self.fuses_qkv and where.in_order and x.shape[0] <= MAX_DECODE_ROWS:
            qkv = self.qkv
            return qkv_rope(
                x,
                qkv.weight,
                heads,
                key,
                value,
                where.positions,
                cos,
                sin,
                qkv.bias,
                qkv.scale,
                self.pre_attention,
                self.eps,
            )
        states = self.qkv.apply_to(x, self.pre_attention, self.eps)
        return rope_cache(
            states, heads, key, value, where.positions, where.rows, cos, sin, self.q_norm, self.k_norm, self.eps
        )

    def _add(
        self,
        part: Any,
        x: torch.Tensor,
        residual: torch.Tensor,
        before: torch.Tensor | None,
        after: torch.Tensor | None,
    ) -> torch.Tensor:
        """residual + after(part(before(x)))."""
        if after is None:
            return part.apply_to(x, before, self.eps, residual)
        return rms_norm_add(part.apply_to(x, before, self.eps), after, self.eps, residual)
