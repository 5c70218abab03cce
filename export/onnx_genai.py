"""A folder for onnxruntime-genai: fused ONNX graph, genai_config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.base import Job, Requirement, Target, Written
from prunekit.runner import Runner

if TYPE_CHECKING:
    import torch


class OnnxGenai(Target):
    name = "onnx-genai"
    summary = "A folder for onnxruntime-genai: fused graph, generation settings, tokenizer."
    dtypes = ("fp32", "fp16", "int4")
    writes_with = (
        Requirement("onnxruntime-genai", extra="onnx-genai"),
        Requirement("onnx-ir", extra="onnx-genai"),
    )
    runs_with = (Requirement("onnxruntime-genai", extra="onnx-genai"),)

    def check(self, job: Job) -> None:
        from prunekit.export.genai_builder import check_version, supported

        check_version()
        family = job.source.family
        if not supported(family.model_type):
            raise PrunekitError(f"onnxruntime-genai's model builder has no {family.name}; export to onnx.")

    def write(self, job: Job, folder: Path) -> Written:
        from prunekit.export.genai_builder import build

        weights = build(job, folder)
        (folder / "genai_config.json").write_text(json.dumps(_genai_config(job), indent=1) + "\n", encoding="utf-8")
        copy_tokenizer(job.source.path, folder)
        return Written(decode_bytes=weights["read"])

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        from prunekit.export.genai_runner import GenaiRunner

        return GenaiRunner(folder, threads)

    def stored_weights(self, job: Job, folder: Path) -> Mapping[str, torch.Tensor] | None:
        return None

    def usage(self, job: Job) -> str:
        return ""


def _genai_config(job: Job) -> dict[str, Any]:
    """genai_config.json. Head counts are onnxruntime-genai's defaults only: it takes each layer's from the graph."""
    from prunekit.export.genai_builder import MODEL

    shape, config = job.source.shape, job.source.config
    eos = config.eos_token_id
    return {
        "model": {
            "bos_token_id": config.bos_token_id if config.bos_token_id is not None else 0,
            "context_length": job.context_length,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": MODEL,
                "head_size": shape.head_dim,
                "hidden_size": shape.hidden_size,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": shape.layers[0].num_attention_heads,
                "num_hidden_layers": shape.num_hidden_layers,
                "num_key_value_heads": shape.layers[0].num_key_value_heads,
            },
            "eos_token_id": eos if eos is not None else 0,
            "pad_token_id": config.pad_token_id if config.pad_token_id is not None else 0,
            "type": job.source.family.model_type,
            "vocab_size": shape.vocab_size,
        },
        "search": {
            "do_sample": False,
            "max_length": job.context_length,
            "min_length": 0,
            "num_beams": 1,
            "past_present_share_buffer": True,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }
