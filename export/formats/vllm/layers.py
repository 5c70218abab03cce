"""Decoder layers of a pruned model, put together from vLLM's own parts, each as wide as its layer is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.layers.activation import get_act_and_mul_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope

from prunekit.export.formats.vllm.blueprint import Blueprint, LayerBlueprint
from prunekit.export.formats.vllm.weights import GATE_UP, QKV


def make_norm(blueprint: Blueprint, width: int) -> nn.Module:
    """The family's RMSNorm over ``width`` channels: times the weight, or times one plus the weight."""
    norm: nn.Module = (GemmaRMSNorm if blueprint.family.norm_offset else RMSNorm)(width, eps=blueprint.eps)
    return norm


class WideNorm(nn.Module):
    """An RMSNorm over all heads of a layer, of which each device holds ``heads``; ``copies`` devices hold the same."""

    def __init__(self, heads: int, head_dim: int, eps: float, copies: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads * head_dim))
        self.weight.weight_loader = self._load  # type: ignore[attr-defined]
        self.eps = eps
        self.ways = get_tensor_model_parallel_world_size()
        self.shard = get_tensor_model_parallel_rank() // copies

    def _load(self, parameter: nn.Parameter, loaded: Tensor) -> None:
        size = parameter.shape[0]
        parameter.data.copy_(loaded.narrow(0, self.shard * size, size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        mean = wide.square().mean(-1, keepdim=True)
        if self.ways > 1:
            # Devices hold equally many channels, and each head as often as any other: their mean is that of all heads.
            mean = tensor_model_parallel_all_reduce(mean) / self.ways
        return (wide * torch.rsqrt(mean + self.eps)).to(x.dtype) * self.weight


class PrunedAttention(nn.Module):
    """Attention with one product for queries, keys and values."""

    def __init__(self, vllm_config: VllmConfig, blueprint: Blueprint, layer: LayerBlueprint, prefix: str):
        super().__init__()
        quant_config = vllm_config.quant_config
        ways = get_tensor_model_parallel_world_size()
        heads, kv_heads = layer.shape.num_attention_heads, layer.shape.num_key_value_heads
        self.head_dim = blueprint.head_dim
        self.heads = heads // ways
        self.kv_heads = max(1, kv_heads // ways)
        self.sizes = [self.heads * self.head_dim, *[self.kv_heads * self.head_dim] * 2]
        self.qkv_proj = QKVParallelLinear(
            blueprint.hidden_size,
            self.head_dim,
            heads,
            kv_heads,
            bias=blueprint.qkv_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.{QKV}",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim,
            blueprint.hidden_size,
            bias=blueprint.o_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.qk_norm = blueprint.family.qk_norm
        if self.qk_norm == "head":
            self.q_norm, self.k_norm = (make_norm(blueprint, self.head_dim) for _ in range(2))
        elif self.qk_norm == "all":
            self.q_norm = WideNorm(self.heads, self.head_dim, blueprint.eps, copies=1)
            self.k_norm = WideNorm(self.kv_heads, self.head_dim, blueprint.eps, copies=max(1, ways // kv_heads))
        self.rotary_emb = (
            None
            if layer.rope is None
            else get_rope(self.head_dim, max_position=blueprint.max_positions, rope_parameters=layer.rope)
        )
        self.attn = Attention(
            self.heads,
            self.head_dim,
            blueprint.attention_scale,
            num_kv_heads=self.kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            logits_soft_cap=blueprint.attention_softcap,
            per_layer_sliding_window=layer.window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden)
        q, k, v = qkv.split(self.sizes, dim=-1)
        if self.qk_norm == "head":
            q = self.q_norm(q.unflatten(-1, (self.heads, self.head_dim))).flatten(-2)
            k = self.k_norm(k.unflatten(-1, (self.kv_heads, self.head_dim))).flatten(-2)
        elif self.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary_emb is not None:
            q, k = self.rotary_emb(positions, q, k)
        output: Tensor = self.o_proj(self.attn(q, k, v))[0]
        return output


class PrunedFFN(nn.Module):
    """A gated FFN with one product for gate and up. ``width`` is what it has in memory."""

    def __init__(self, vllm_config: VllmConfig, blueprint: Blueprint, width: int, prefix: str):
        super().__init__()
        quant_config = vllm_config.quant_config
        self.gate_up_proj = MergedColumnParallelLinear(
            blueprint.hidden_size,
            [width] * 2,
            bias=blueprint.mlp_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.{GATE_UP}",
        )
        self.down_proj = RowParallelLinear(
            width,
            blueprint.hidden_size,
            bias=blueprint.mlp_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = get_act_and_mul_fn(blueprint.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.act_fn(self.gate_up_proj(hidden)[0]))[0]
        return output


class PrunedLayer(nn.Module):
    """x += post(attention(pre(x))); x += post(ffn(pre(x))), with the norms that the family has. A removed attention or
    FFN is left out with its norms, and a removed attention has no KV cache."""

    def __init__(self, vllm_config: VllmConfig, blueprint: Blueprint, index: int, ffn_width: int, prefix: str):
        super().__init__()
        layer, norms = blueprint.layers[index], blueprint.family.block_norms
        self.norm_names: dict[str, tuple[str | None, str | None]] = {}
        if layer.has_attention:
            self.self_attn = PrunedAttention(vllm_config, blueprint, layer, f"{prefix}.self_attn")
            self.norm_names["self_attn"] = (norms.pre_attention, norms.post_attention)
        if layer.has_ffn:
            self.mlp = PrunedFFN(vllm_config, blueprint, ffn_width, f"{prefix}.mlp")
            self.norm_names["mlp"] = (norms.pre_ffn, norms.post_ffn)
        for names in self.norm_names.values():
            for name in names:
                if name is not None:
                    setattr(self, name, make_norm(blueprint, blueprint.hidden_size))

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The stream is ``hidden`` plus ``residual``: the sum is left to the next norm, which does both in one go."""
        for name, (pre, post) in self.norm_names.items():
            if pre is None:
                residual = hidden = hidden if residual is None else hidden + residual
            elif residual is None:
                residual, hidden = hidden, getattr(self, pre)(hidden)
            else:
                hidden, residual = getattr(self, pre)(hidden, residual)
            module: Any = getattr(self, name)
            hidden = module(positions, hidden) if name == "self_attn" else module(hidden)
            if post is not None:
                hidden = getattr(self, post)(hidden)
        return hidden, residual
