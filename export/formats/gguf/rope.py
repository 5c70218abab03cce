"""How a model rotates its queries and keys, in llama.cpp's terms."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.models.source import Source
from prunekit.plan.shape import LayerShape


@dataclass(frozen=True)
class Rotation:
    """Rotary embedding as llama.cpp gets it. ``factors`` divide the frequencies one by one (rope_freqs.weight, or
    Phi-3's two tensors), ``attention`` scales sine and cosine, ``context`` is as far as this holds."""

    base: float
    dimensions: int
    kind: str = "none"
    factor: float = 1.0
    original: int | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention: float = 1.0
    factors: tuple[float, ...] | None = None
    context: int | None = None
    window_base: float | None = None


def refusal(source: Source, why: str) -> PrunekitError:
    return PrunekitError(f"{source.name} can't be written as GGUF: {why}. Export it to onnx or vllm instead.")


def rotation_of(source: Source) -> Rotation:
    """The model's rotary embedding. ``kind`` is llama.cpp's name of the scaling, or "free" where only setting every
    frequency will do. Raises PrunekitError for scalings that transformers has and this can't express."""
    config, shape = source.config, source.shape
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    window_base = None
    if "full_attention" in parameters:
        windowed = dict(parameters.get("sliding_attention") or {})
        if windowed.get("rope_type", "default") != "default":
            raise refusal(source, "its windowed layers scale their rotary embedding")
        window_base = float(windowed.get("rope_theta", 10000.0))
        parameters = dict(parameters["full_attention"])
    kind = parameters.get("rope_type") or "default"
    base = float(parameters.get("rope_theta") or 10000.0)
    share = float(parameters.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0)
    rotation = Rotation(base, int(shape.head_dim * share), window_base=window_base)
    if share != 1.0 and source.family.model_type != "phi3":
        raise refusal(source, "it rotates only a part of every head")
    original = parameters.get("original_max_position_embeddings") or getattr(
        config, "original_max_position_embeddings", None
    )
    if kind in ("default", "dynamic"):
        # "dynamic" scales only beyond the positions the model was made for.
        return rotation
    if kind == "linear":
        return replace(rotation, kind="linear", factor=float(parameters["factor"]))
    if kind == "yarn" and source.family.model_type not in ("llama", "mistral", "phi3"):
        if parameters.get("truncate") is False:
            raise refusal(source, "its YaRN does not round the range that it scales, which llama.cpp does")
        factor = float(parameters["factor"])
        _, attention = _frequencies(source, kind, parameters)
        return replace(
            rotation,
            kind="yarn",
            factor=factor,
            original=int(original or config.max_position_embeddings),
            beta_fast=float(parameters.get("beta_fast") or 32),
            beta_slow=float(parameters.get("beta_slow") or 1),
            # llama.cpp puts in 1 + 0.1 ln(factor) by itself.
            attention=attention / (1 + 0.1 * math.log(factor)),
        )
    if kind in ("llama3", "yarn", "longrope"):
        factors, attention = _frequencies(source, kind, parameters)
        # LongRoPE has two sets of frequencies: llama.cpp chooses by the room it is given, transformers by the text.
        context = int(original) if kind == "longrope" and original else None
        return replace(rotation, kind="free", attention=attention, factors=factors, context=context, original=context)
    raise refusal(source, f"llama.cpp has no {kind} scaling of rotary embeddings")


def _frequencies(source: Source, kind: str, parameters: dict[str, Any]) -> tuple[tuple[float, ...], float]:
    """What divides each of the plain frequencies, and the scale of sine and cosine, as transformers computes them."""
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from prunekit.models.modeling import stock_config

    shape = source.shape
    dense = replace(shape.layers[0])
    heads = shape.hidden_size // shape.head_dim or 1
    if shape.hidden_size % shape.head_dim == 0:
        dense = LayerShape(heads, heads, dense.intermediate_size)
    config = stock_config(source.family, source.config, dense, list(range(shape.num_hidden_layers)))
    inverse, attention = ROPE_INIT_FUNCTIONS[kind](config, device=torch.device("cpu"))
    count = len(inverse)
    plain = 1.0 / float(parameters.get("rope_theta") or 10000.0) ** (torch.arange(count, dtype=torch.float64) / count)
    return tuple((plain / inverse.double()).tolist()), float(attention)
