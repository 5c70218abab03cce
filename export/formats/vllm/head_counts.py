"""Head counts that differ between layers, for a vLLM that knows one count for a whole model, as 0.26 does."""

from __future__ import annotations

from typing import Any

from prunekit.models.families import FAMILIES
from prunekit.models.modeling import pruned_class


def teach_head_counts() -> None:
    """Let vLLM plan with the dense model's head counts, and FlashAttention with those of the layers it plans for. Does
    nothing where vLLM reads ``per_layer_config`` itself. Safe to call again."""
    from vllm.config import model_arch

    if hasattr(model_arch.ModelArchitectureConfig, "per_layer_overrides"):
        return
    for family in FAMILIES.values():
        # A config whose layers differ refuses to name one count, unless it is told that the reader knows.
        pruned_class(family, "Config").allow_global_per_layer_attribute_access = True
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder
        from vllm.v1.attention.backends.utils import get_num_attention_heads_from_layers

        plan_by_layer(FlashAttentionMetadataBuilder, get_num_attention_heads_from_layers)


def plan_by_layer(builder: Any, query_heads: Any) -> None:
    """Give ``builder``, which schedules the attention of a group of layers, the head counts of that group: vLLM has
    already put layers of different counts into different groups. ``query_heads`` counts those of the named layers."""
    stock = builder.__init__
    if getattr(stock, "by_layer", False):
        return

    def init(self: Any, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any) -> None:
        stock(self, kv_cache_spec, layer_names, vllm_config, device)
        self.num_heads_q = query_heads(vllm_config, layer_names) or self.num_heads_q
        self.num_heads_kv = kv_cache_spec.num_kv_heads

    init.by_layer = True  # type: ignore[attr-defined]
    builder.__init__ = init
