"""genai_config.json: how onnxruntime-genai drives the graph."""

from __future__ import annotations

from typing import Any, TypeGuard

from prunekit.errors import PrunekitError
from prunekit.export.base import Job
from prunekit.files import read_json

CONFIG = "genai_config.json"


def genai_config(job: Job) -> dict[str, Any]:
    """The file's content. Head counts are onnxruntime-genai's defaults only: it takes each layer's from the graph.

    Special tokens come from the checkpoint's generation_config.json, then its config; a tokenizer's end-of-turn token
    ends a text too, for many configs name <|endoftext|> only.
    """
    from prunekit.export.genai_builder import MODEL

    shape = job.source.shape
    begin, ends, pad = _special_tokens(job)
    return {
        "model": {
            "bos_token_id": begin,
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
            "eos_token_id": ends,
            "pad_token_id": pad,
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


def _special_tokens(job: Job) -> tuple[int, list[int], int]:
    """The first token of a text, those that end it, and the padding. Ids that are no tokens are left out, for
    onnxruntime-genai refuses them."""
    file = job.source.path / "generation_config.json"
    generation = read_json(file, "generation config") if file.is_file() else {}
    if not isinstance(generation, dict):
        raise PrunekitError(f"{file} is no JSON object; copy the original model's over it.")
    try:
        tokenizer = job.tokenizer
    except PrunekitError:
        tokenizer = None

    def ids(name: str) -> list[int]:
        for value in (generation.get(name), getattr(job.source.config, name, None), getattr(tokenizer, name, None)):
            found = [each for each in (value if isinstance(value, list) else [value]) if _is_token(each, job)]
            if found:
                return found
        return []

    ends = ids("eos_token_id")
    turn = getattr(tokenizer, "eos_token_id", None)
    if _is_token(turn, job) and turn not in ends:
        ends.insert(0, turn)
    begin, pad = ids("bos_token_id"), ids("pad_token_id")
    return (begin or ends or [0])[0], ends, (pad or ends or [0])[0]


def _is_token(value: Any, job: Job) -> TypeGuard[int]:
    return isinstance(value, int) and 0 <= value < job.source.shape.vocab_size
