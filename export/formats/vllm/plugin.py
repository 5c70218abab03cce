"""What vLLM calls through the entry point ``vllm.general_plugins`` in each of its processes."""

from __future__ import annotations

from prunekit.models.families import FAMILIES

# A name, so that vLLM imports it only for a model that needs it.
MODEL = "prunekit.export.formats.vllm.model:PrunedForCausalLM"


def register() -> None:
    """Let vLLM load checkpoints whose layers differ without remote code. Safe to call again; touches no device."""
    from prunekit.models.modeling import register_pruned

    register_pruned()
    from vllm import ModelRegistry

    from prunekit.export.formats.vllm.head_counts import teach_head_counts

    teach_head_counts()

    known = set(ModelRegistry.get_supported_archs())
    for family in FAMILIES.values():
        if family.pruned_causal_lm_class not in known:
            ModelRegistry.register_model(family.pruned_causal_lm_class, MODEL)
