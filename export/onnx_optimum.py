"""What optimum-onnx and its like look for beside model.onnx: a config.json of a stock architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prunekit.export.base import Job

# The types for which optimum-onnx 0.1's ORTModelForCausalLM reads num_key_value_heads; for others it takes as many KV
# heads as query heads.
_KNOWN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma3_text")
_PER_LAYER = ("per_layer_config", "auto_map", "_name_or_path", "quantization_config")


def stock_fields(job: Job) -> dict[str, Any] | None:
    """Fields of a config with which ORTModelForCausalLM makes a KV cache of the right shape, None where none can.

    It has one number of KV heads for all layers, and takes hidden_size / num_attention_heads for the width of a head,
    whatever head_dim says. The number of query heads is used for nothing else, so it is given the number that makes
    this come out.
    """
    shape, family = job.source.shape, job.source.family
    kv_heads = {layer.num_key_value_heads for layer in shape.layers}
    if len(kv_heads) > 1 or family.model_type not in _KNOWN or shape.hidden_size % shape.head_dim:
        return None
    fields = {name: value for name, value in job.source.config.to_dict().items() if name not in _PER_LAYER}
    return {
        **fields,
        "model_type": family.model_type,
        "architectures": [family.causal_lm_class],
        "head_dim": shape.head_dim,
        "num_attention_heads": shape.hidden_size // shape.head_dim,
        "num_key_value_heads": kv_heads.pop(),
        "intermediate_size": max(layer.intermediate_size for layer in shape.layers),
        "dtype": {"fp32": "float32", "fp16": "float16"}[job.dtype],
    }


def write_config(job: Job, folder: Path) -> bool:
    """Write config.json where there is one that fits. Returns whether."""
    fields = stock_fields(job)
    if fields is not None:
        (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return fields is not None
