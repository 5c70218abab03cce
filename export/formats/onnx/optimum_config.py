"""What optimum-onnx and transformers.js look for beside model.onnx: a config.json of a stock architecture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prunekit.export.target import Job

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
    return _fields(job)


def _fields(job: Job) -> dict[str, Any]:
    """A config of the family's stock architecture. Where layers differ it has the widest layer's numbers."""
    shape, family = job.source.shape, job.source.family
    heads = max(layer.num_attention_heads for layer in shape.layers)
    if shape.hidden_size % shape.head_dim == 0:
        heads = shape.hidden_size // shape.head_dim
    fields = {name: value for name, value in job.source.config.to_dict().items() if name not in _PER_LAYER}
    return {
        **fields,
        "model_type": family.model_type,
        "architectures": [family.causal_lm_class],
        "head_dim": shape.head_dim,
        # transformers wants the hidden size to be a multiple of it.
        "num_attention_heads": math.gcd(heads, shape.hidden_size),
        "num_key_value_heads": max(layer.num_key_value_heads for layer in shape.layers),
        "intermediate_size": max(layer.intermediate_size for layer in shape.layers),
        "dtype": {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[job.dtype],
    }


def write_config(job: Job, folder: Path, data: str | None) -> bool:
    """Write config.json; ``data`` is the file beside the graph that holds its weights, where there is one. Returns
    whether ORTModelForCausalLM can run the model by it: others, like transformers.js, read the cache's shapes from the
    graph, and need the architecture's name and the number of layers."""
    fields = _fields(job)
    # The graph's name has no suffix for its type, which is how transformers.js names float32.
    browser: dict[str, Any] = {"dtype": "fp32"}
    if data is not None:
        browser["use_external_data_format"] = {"model.onnx": 1}
    text = json.dumps({**fields, "transformers.js_config": browser}, indent=1)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return stock_fields(job) is not None
