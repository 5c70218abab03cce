"""A whole model as the runtime sees it: embedding, blocks, head; prefill and one decode step.

T = tokens of a forward, B = sequences, L = prompt tokens of each, H = hidden size, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunekit.kernels.modules.packed import PackedLinear
from prunekit.kernels.ops.attention.decode import attention_decode
from prunekit.kernels.ops.attention.prefill import prefill_attention
from prunekit.kernels.runtime.block import ALL, Block, Rope, Where
from prunekit.kernels.runtime.kv_cache import KVCache, LayerCache

# Tokens that one pass of a prefill takes: bounds the memory of activations, and is enough to fill any GPU.
PREFILL_TOKENS = 8192
PREFILL_LENGTH = 2048


@dataclass
class Decoder:
    """The parts of an optimised model. ``embed`` maps token ids to hidden states; ``rotary`` is the model's rotary
    embedding. ``final_norm`` is float32 [H]; ``head`` maps [T, H] to logits [T, V]."""

    embed: Any
    rotary: Any
    blocks: list[Block]
    final_norm: torch.Tensor
    head: PackedLinear
    final_softcap: float

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def cache(self, batch: int, capacity: int, arena: torch.Tensor | None = None) -> KVCache:
        """A KV cache for ``batch`` sequences of up to ``capacity`` tokens, in ``arena`` where one is given."""
        heads = [block.num_key_value_heads for block in self.blocks]
        return KVCache(heads, self.blocks[0].head_dim, batch, capacity, self.dtype, self.device, arena)

    def cache_elements(self, batch: int, capacity: int) -> int:
        """Elements of the arena that such a cache lies in."""
        return 2 * batch * capacity * sum(block.num_key_value_heads * block.head_dim for block in self.blocks)

    def ropes(self, length: int) -> dict[str, Rope]:
        """Rotary tables for positions below ``length``, from the model's own rotary embedding.

        Where a model changes its frequencies with the length of the sequence (dynamic NTK, LongRoPE), the tables are
        those of ``length`` from the first token on.
        """
        positions = torch.arange(length, device=self.device)[None]
        like = torch.empty(0, dtype=torch.float32, device=self.device)
        tables = {}
        for name in sorted({block.rope for block in self.blocks if block.rope}):
            cos, sin = self.rotary(like, positions, *(() if name == ALL else (name,)))
            half = cos.shape[-1] // 2  # transformers repeats each half
            tables[name] = Rope(cos[0, :, :half].contiguous(), sin[0, :, :half].contiguous())
        return tables

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[T, H] after the last block → [T, V]."""
        return self.head.apply_to(x, self.final_norm, self.blocks[0].eps, softcap=self.final_softcap)

    def arrivals(self, batch: int) -> torch.Tensor:
        """What :func:`attention_decode` counts in, for all layers and steps of ``batch`` sequences."""
        heads = max(block.num_attention_heads for block in self.blocks)
        return torch.zeros(batch * heads, dtype=torch.int32, device=self.device)

    def step(
        self,
        x: torch.Tensor,
        where: Where,
        lengths: torch.Tensor,
        cache: KVCache,
        ropes: dict[str, Rope],
        arrivals: torch.Tensor,
    ) -> torch.Tensor:
        """One new token for every sequence: embeddings ``x`` [B, H] at ``where`` → logits [B, V]. ``lengths`` [B]
        int32, the sequences' with it, are one more than its positions; ``arrivals`` from the method of that name."""

        def attend(block: Block, query: torch.Tensor, layer: LayerCache) -> torch.Tensor:
            rest = (block.scaling, block.window, block.softcap, arrivals)
            return attention_decode(query, layer.key, layer.value, lengths, *rest)

        return self.logits(self._run(x, cache, where, ropes, attend))

    def prefill(self, ids: torch.Tensor, lengths: torch.Tensor, cache: KVCache, ropes: dict[str, Rope]) -> torch.Tensor:
        """Prompts ``ids`` [B, L] int64, of which sequence b has ``lengths[b]`` tokens from the left → logits [B, V] of
        each one's last token. Long or many prompts go through in pieces.

        Pads on the right cost time but change nothing: attention is causal, and decode overwrites their keys.
        """
        batch, length = ids.shape
        last = torch.empty(batch, self.final_norm.shape[0], dtype=self.dtype, device=ids.device)
        width = min(length, PREFILL_LENGTH)
        height = max(1, PREFILL_TOKENS // width)
        for top in range(0, batch, height):
            rows = slice(top, min(batch, top + height))
            for left in range(0, length, width):
                columns = slice(left, min(length, left + width))
                x = self._piece(ids[rows, columns], top, left, cache, ropes)
                ends = lengths[rows] - 1
                here = (ends >= left) & (ends < columns.stop)
                picked = x[torch.arange(len(ends), device=ids.device), (ends - left).clamp(0, x.shape[1] - 1)]
                last[rows] = torch.where(here[:, None], picked, last[rows])
        return self.logits(last)

    def _piece(self, ids: torch.Tensor, top: int, left: int, cache: KVCache, ropes: dict[str, Rope]) -> torch.Tensor:
        """Tokens [b, l] of cache rows from ``top`` at positions from ``left`` → hidden states [b, l, H]."""
        batch, length = ids.shape
        rows = torch.arange(top, top + batch, dtype=torch.int32, device=ids.device).repeat_interleave(length)
        positions = torch.arange(left, left + length, dtype=torch.int32, device=ids.device).repeat(batch)

        def attend(block: Block, query: torch.Tensor, layer: LayerCache) -> torch.Tensor:
            seen = (slice(top, top + batch), slice(None), slice(0, left + length))
            grouped = query.view(batch, length, *query.shape[1:])
            mixed = prefill_attention(
                grouped, layer.key[seen], layer.value[seen], block.scaling, block.window, block.softcap
            )
            return mixed.flatten(0, 1)

        x = self.embed(ids).flatten(0, 1)
        return self._run(x, cache, Where(positions, rows, False), ropes, attend).view(batch, length, -1)

    def _run(self, x: torch.Tensor, cache: KVCache, where: Where, ropes: dict[str, Rope], attend: Any) -> torch.Tensor:
        for block, layer in zip(self.blocks, cache.layers, strict=True):
            x = block(x, layer, where, ropes, attend)
        return x
