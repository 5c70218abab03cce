"""genai_config.json: how onnxruntime-genai drives the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.generation import Generation, template_key
from prunekit.export.target import Job
from prunekit.utils.files.atomic import read_json

CONFIG = "genai_config.json"
CUDA_GRAPH = "enable_cuda_graph"
# Of generation_config.json, what onnxruntime-genai's search has under the same name, and as what it reads it.
_SEARCH: dict[str, type] = {
    **dict.fromkeys(("do_sample", "early_stopping"), bool),
    **dict.fromkeys(("top_k", "num_beams", "no_repeat_ngram_size", "min_length"), int),
    **dict.fromkeys(("temperature", "top_p", "repetition_penalty", "length_penalty", "diversity_penalty"), float),
}
# The byte 255, which UTF-8 never has, as SentencePiece and as byte-level BPE write it.
_NO_TEXT = ("<0xFF>", "\u00ff")


def genai_config(job: Job) -> dict[str, Any]:
    """The file's content. Head counts are onnxruntime-genai's defaults only: it takes each layer's from the graph.

    All tokens that end a text are listed, and the checkpoint's own way of drawing tokens is the default.
    """
    from prunekit.export.formats.onnx_genai.builder import MODEL

    shape = job.source.shape
    generation = job.generation
    ends = list(generation.ends)
    begin = generation.begin if generation.begin is not None else (ends or [0])[0]
    return {
        "model": {
            "bos_token_id": begin,
            "context_length": job.context_length,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{"cuda": {CUDA_GRAPH: "1"}}] if job.on_gpu else [],
                },
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
            "pad_token_id": padding_token(job),
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
            **_search(generation),
        },
    }


def captures(settings: Mapping[str, Any]) -> bool:
    """Whether a genai_config.json asks for CUDA graphs of decode steps."""
    providers = settings["model"]["decoder"].get("session_options", {}).get("provider_options", [])
    return any(each.get("cuda", {}).get(CUDA_GRAPH) == "1" for each in providers)


def without_cuda_graph(folder: Path) -> None:
    """Have the genai_config.json in ``folder`` ask for none."""
    settings = read_json(folder / CONFIG, "onnxruntime-genai config")
    settings["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {CUDA_GRAPH: "0"}}]
    (folder / CONFIG).write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def placed(job: Job) -> frozenset[str]:
    """What of the checkpoint's generation settings the folder holds where onnxruntime-genai looks for it."""
    return job.generation.all_ends | set(_search(job.generation)) | {template_key()}


def _search(generation: Generation) -> dict[str, Any]:
    """The settings that have a place there, as numbers of its kind."""
    found = {}
    for name, value in generation.sampling.items():
        kind = _SEARCH.get(name)
        # transformers' early_stopping may be a word too, and a whole number be written with a point.
        if kind is not None and isinstance(value, bool) == (kind is bool) and kind(value) == value:
            found[name] = kind(value)
    return found


def padding_token(job: Job) -> int:
    """The token that fills up shorter prompts of a batch. onnxruntime-genai masks it wherever it stands, so it must be
    none that begins, ends or structures texts: the checkpoint's own where that is no such token, else a row of
    the table behind the tokenizer's last token, a special token that no template names, or a byte that no UTF-8 text
    has."""
    generation = job.generation
    used = {generation.begin, *generation.ends}
    if generation.pad is not None and generation.pad not in used:
        return generation.pad
    try:
        tokenizer = job.tokenizer
    except PrunekitError:
        return next((each for each in (generation.pad, *generation.ends) if each is not None), 0)
    tokens = tokenizer.get_vocab()
    templates = "".join(generation.templates.values())
    behind = max(tokens.values()) + 1
    if behind < job.source.shape.vocab_size:
        return behind
    for token in tokenizer.all_special_tokens:
        if tokens[token] not in used and token not in templates and token != tokenizer.unk_token:
            return int(tokens[token])
    for token in _NO_TEXT:
        if token in tokens and tokens[token] not in used and tokenizer.decode([tokens[token]]) == "\ufffd":
            return int(tokens[token])
    return next((each for each in (generation.pad, *generation.ends) if each is not None), 0)
