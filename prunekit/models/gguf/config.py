"""From the header of a GGUF file to the transformers config of the same model: every key and tensor is used, known to
be harmless, or refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.models.families import BIASES, FAMILIES, Family
from prunekit.models.gguf.rope import FACTORS, rope_parameters
from prunekit.models.gguf.tensors import Architecture, entries
from prunekit.models.gguf.tokenizer import special_ids

if TYPE_CHECKING:
    from prunekit.models.gguf.header import Header

# llama.cpp's architectures whose text transformers can tokenise, and the families they are.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
_HARMLESS = frozenset({"tensor_data_layout", "vocab_size", "rope.scaling.finetuned", "context_length_used"})
# Harmless with this value only, which is what a model has that does not state it.
_NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "expert_count": 0,
    "expert_used_count": 0,
    "use_parallel_residual": False,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "pooling_type": 0,
}
_USED = frozenset(
    {
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.scale",
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    }
)
# llama.cpp takes the 27B models' own attention scale where it sees their number of layers.
_LAYERS_27B = {"gemma2": 46, "gemma3": 62}
# What llama.cpp and the families' first models have where a file does not say.
_SOFTCAPS = {"gemma2": (50.0, 30.0), "gemma3": (0.0, 0.0)}
_WINDOWS = {"gemma2": (4096, 2), "gemma3": (1024, 6)}


def refusal(header: Header, what: str) -> PrunekitError:
    return PrunekitError(
        f"{header.file} can't be converted without changing the model: {what}. Give the Hugging Face checkpoint "
        "that it was made of."
    )


def config_of(header: Header) -> tuple[Family, Any]:
    """The family of the model in the file, and its config. Raises PrunekitError for what they can't express."""
    name = header.architecture
    if name not in ARCHITECTURES:
        raise PrunekitError(
            f"{header.file} can't be read as a GGUF model of the architecture {name[:60]!r}; what works: "
            f"{', '.join(ARCHITECTURES)}. Give the Hugging Face checkpoint instead."
        )
    family = FAMILIES[ARCHITECTURES[name]]
    _refuse_other_keys(header)
    fields = _geometry(header)
    head_dim = fields["head_dim"]
    fields |= _attention(header, family, fields)
    fields |= rope_parameters(header, fields, lambda what: refusal(header, what))
    for switch, part in zip(BIASES, (("q", "k", "v", "qkv"), ("output",), ("gate", "up", "down")), strict=True):
        flag = getattr(family, switch)
        prefix = "ffn" if switch == "mlp_bias" else "attn"
        if isinstance(flag, str) and any(f"blk.0.{prefix}_{each}.bias" in header.tensors for each in part):
            fields[flag] = True
    special = special_ids(header)
    fields |= {f"{name}_token_id": special[name] for name in ("bos", "eos", "pad")}
    config_class = family.stock(family.config_class)
    try:
        config = config_class(**fields, architectures=[family.causal_lm_class])
        shape = family.shape(config)
    except Exception as error:  # transformers has dozens of types for what it does not like
        what = " ".join(str(error.__cause__ or error).split()).rstrip(".")[:200]
        raise refusal(header, f"its numbers make no {family.name} model ({what})") from None
    if shape.head_dim != head_dim:
        raise refusal(header, f"a {family.name} model can't have heads of {head_dim} channels at these widths")
    return family, config


def _refuse_other_keys(header: Header) -> None:
    prefix = f"{header.architecture}."
    if header.fields.get("split.count", 0) not in (0, 1):
        raise PrunekitError(f"{header.file} is one of several parts (split.count); merge them with llama-gguf-split.")
    if header.fields.get("general.type", "model") not in ("model", ""):
        raise refusal(header, f"it holds no whole model (general.type {str(header.fields['general.type'])[:40]!r})")
    for key, value in header.fields.items():
        name = key.removeprefix(prefix)
        if name == key or name in _USED or name in _HARMLESS or name.startswith("rope."):
            continue
        if name.endswith("vocab_size") or (name in _NEUTRAL and value == _NEUTRAL[name]):
            continue
        raise refusal(header, f"its key {key[:80]!r} is not known")


def _number(header: Header, name: str, default: Any = None) -> Any:
    """A number that is the same for all layers."""
    value = header.field(name, default)
    if isinstance(value, list):
        if len({*value}) != 1:
            raise refusal(header, f"its layers differ in {name}")
        value = value[0]
    if value is None:
        raise PrunekitError(f"{header.file} lacks the key {header.architecture}.{name}; download it again.")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PrunekitError(f"{header.file} has no number in {header.architecture}.{name}; download it again.")
    return value


def _whole(header: Header, name: str, default: Any = None) -> int:
    value = _number(header, name, default)
    if int(value) != value or not 1 <= value < 1 << 31:
        raise PrunekitError(
            f"{header.file} has {value!r} in {header.architecture}.{name}, where a whole number of at least 1 belongs; "
            "download it again."
        )
    return int(value)


def _geometry(header: Header) -> dict[str, Any]:
    hidden, heads = _whole(header, "embedding_length"), _whole(header, "attention.head_count")
    head_dim = _whole(header, "attention.key_length", hidden // heads)
    if _whole(header, "attention.value_length", head_dim) != head_dim:
        raise refusal(header, "its keys and values have different widths (attention.key_length, value_length)")
    layers = _whole(header, "block_count")
    if layers > len(header.tensors):
        raise PrunekitError(f"{header.file} lacks the weights of its {layers:,} layers; download it again.")
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise PrunekitError(f"{header.file} lacks the weight token_embd.weight; download it again.")
    # GGUF keeps it in float32: 9.999999747378752e-06 is the same number to the model, but 1e-05 is what was meant.
    epsilon = float(str(np.float32(_number(header, "attention.layer_norm_rms_epsilon"))))
    if not 0 <= epsilon <= 1:
        raise refusal(
            header, f"it adds {epsilon:g} in its norms ({header.architecture}.attention.layer_norm_rms_epsilon)"
        )
    return {
        "num_hidden_layers": layers,
        "max_position_embeddings": _whole(header, "context_length"),
        "hidden_size": hidden,
        "intermediate_size": _whole(header, "feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(header, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": epsilon,
        "vocab_size": table.shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }


def _attention(header: Header, family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    """Soft caps, the scale of queries and the sliding window."""
    name = header.architecture
    made: dict[str, Any] = {}
    caps = [
        float(_number(header, f"{kind}_logit_softcapping", default))
        for kind, default in zip(("attn", "final"), _SOFTCAPS.get(name, (0.0, 0.0)), strict=True)
    ]
    if name in _SOFTCAPS:
        if name == "gemma3" and caps[0]:
            raise refusal(header, f"its key '{name}.attn_logit_softcapping' is not known")
        made |= {"attn_logit_softcapping": caps[0] or None, "final_logit_softcapping": caps[1] or None}
        scaled = fields["head_dim"]
        if fields["num_hidden_layers"] == _LAYERS_27B[name]:
            scaled = fields["hidden_size"] // fields["num_attention_heads"]
        made["query_pre_attn_scalar"] = scaled
    elif any(caps):
        raise refusal(header, f"it caps logits ({name}.attn_logit_softcapping or final_logit_softcapping)")
    scale = float(_number(header, "attention.scale", 0.0))
    if scale and not 1e-6 < scale < 1e6:
        raise refusal(header, f"it scales queries by {scale:g} ({name}.attention.scale)")
    if scale and name in _SOFTCAPS:
        made["query_pre_attn_scalar"] = round(scale**-2, 4)
    elif scale and not math.isclose(scale, fields["head_dim"] ** -0.5, rel_tol=1e-5):
        raise refusal(header, f"it scales queries in its own way ({name}.attention.scale)")
    return made | _window(header, family, fields)


def _window(header: Header, family: Family, fields: dict[str, Any]) -> dict[str, Any]:
    name, layers = header.architecture, fields["num_hidden_layers"]
    stated = header.field("attention.sliding_window") and _whole(header, "attention.sliding_window")
    pattern = header.field("attention.sliding_window_pattern")
    if name not in _WINDOWS:
        if pattern is not None and any(pattern if isinstance(pattern, list) else [pattern]):
            raise refusal(header, f"its key '{name}.attention.sliding_window_pattern' is not known")
        if not stated or stated >= fields["max_position_embeddings"]:
            return {"sliding_window": None} if name != "llama" else {}
        if name != "phi3":
            raise refusal(header, f"it attends to a sliding window ({name}.attention.sliding_window)")
        return {"sliding_window": stated}
    window, every = _WINDOWS[name]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        every, pattern = pattern, None
    if pattern is None:
        pattern = [(index + 1) % every != 0 for index in range(layers)]
    if not isinstance(pattern, list) or len(pattern) != layers or not {*map(type, pattern)} <= {bool, int}:
        raise refusal(header, f"its key '{name}.attention.sliding_window_pattern' does not fit its {layers} layers")
    types = ["sliding_attention" if windowed else "full_attention" for windowed in pattern]
    return {"sliding_window": _whole(header, "attention.sliding_window", window), "layer_types": types}


def weights(header: Header, family: Family, config: Any) -> Iterator[tuple[str, Any]]:
    """Every weight of the model in float32, by its name in transformers.

    Raises PrunekitError where one is missing, or the file holds a tensor that the model has no place for.
    """
    import torch
    from gguf import GGMLQuantizationType, quants

    shape = family.shape(config)
    todo = {entry.name: entry for entry in entries(family, Architecture(header.architecture, shape))}
    for name in sorted(set(header.tensors) - set(todo) - set(FACTORS)):
        raise refusal(header, f"it holds the tensor {name[:80]!r}, which a {family.name} model has no place for")
    for name, entry in todo.items():
        if name not in header.tensors:
            if name.endswith(".bias") and not entry.name.startswith("output"):
                # Only some of the modules that share one switch have a bias; none is a bias of zeros.
                yield from ((part, None) for part in entry.parts)
                continue
            raise PrunekitError(f"{header.file} lacks the weight {name} of a {family.name} model; download it again.")
        tensor = header.tensors[name]
        values = quants.dequantize(_typed(header, name), GGMLQuantizationType[tensor.kind])
        whole = torch.from_numpy(np.array(values, dtype=np.float32)).reshape(tensor.shape)
        yield from zip(entry.parts, entry.split(whole), strict=True)


def _typed(header: Header, name: str) -> Any:
    data = header.data(name)
    plain = {"F32": np.float32, "F16": np.float16}.get(header.tensors[name].kind)
    return data if plain is None else data.view(plain)
