"""The rotary embedding of a GGUF file in transformers' terms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from prunekit.models.gguf.header import Header

FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_KEYS = frozenset(
    {
        "dimension_count",
        "freq_base",
        "freq_base_swa",
        "scale_linear",
        "scaling.type",
        "scaling.factor",
        "scaling.original_context_length",
        "scaling.attn_factor",
        "scaling.yarn_beta_fast",
        "scaling.yarn_beta_slow",
        "scaling.finetuned",
    }
)
# Harmless with these values, which are llama.cpp's own.
_NEUTRAL = {"scaling.yarn_ext_factor": 1.0, "scaling.yarn_attn_factor": 1.0, "scaling.yarn_log_multiplier": 0.0}
# Of Llama 3.1 and 3.2: how far the low and the high frequencies reach, and the length that they were trained at.
_LLAMA3 = (1.0, 4.0, 8192)
_TOLERANCE = 1e-4

Refuse = Callable[[str], Exception]


def rope_parameters(header: Header, fields: dict[str, Any], refuse: Refuse) -> dict[str, Any]:
    """The fields of a config that say how it rotates. ``fields`` are those that say how wide it is.

    Raises ``refuse`` of what transformers can't express.
    """
    name, head_dim = header.architecture, fields["head_dim"]
    _check_keys(header, refuse)
    _check_numbers(header, refuse)
    base = _plain(header, "freq_base", 10000.0)
    dimensions = int(_plain(header, "dimension_count", head_dim))
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    partial = {}
    if dimensions != head_dim:
        if name != "phi3" or not 0 < dimensions < head_dim or dimensions % 2:
            raise refuse(f"it rotates {dimensions} of {head_dim} channels ({name}.rope.dimension_count)")
        partial = {"partial_rotary_factor": dimensions / head_dim}
    made = as_llama3(made | _scaling(header, fields, dimensions, refuse), dimensions)
    made |= partial
    if name == "gemma3":
        windowed = {"rope_type": "default", "rope_theta": _plain(header, "freq_base_swa", 10000.0)}
        return {"rope_parameters": {"full_attention": made, "sliding_attention": windowed}}
    if header.field("rope.freq_base_swa") not in (None, base):
        raise refuse(f"its windowed layers rotate otherwise ({name}.rope.freq_base_swa)")
    original = made.get("original_max_position_embeddings")
    extra = {"original_max_position_embeddings": original} if name == "phi3" and original else {}
    return {"rope_parameters": made, **partial, **extra}


def _check_keys(header: Header, refuse: Refuse) -> None:
    prefix = f"{header.architecture}.rope."
    for key, value in header.fields.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name not in _KEYS and not (name in _NEUTRAL and value == _NEUTRAL[name]):
            raise refuse(f"its key {key[:80]!r} is not known")


def _check_numbers(header: Header, refuse: Refuse) -> None:
    for name in _KEYS - {"scaling.type", "scaling.finetuned"}:
        value = header.field(f"rope.{name}", 0)
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise refuse(f"its key '{header.architecture}.rope.{name}' is no number of 0 or more")


def _plain(header: Header, name: str, default: float) -> float:
    """A number, where 0 stands for what is not said."""
    value = header.field(f"rope.{name}") or default
    # GGUF keeps it in float32.
    return float(str(np.float32(value)))


def _scaling(header: Header, fields: dict[str, Any], dimensions: int, refuse: Refuse) -> dict[str, Any]:
    name = header.architecture
    kind = header.field("rope.scaling.type", "none") or "none"
    factor = _plain(header, "scaling.factor", _plain(header, "scale_linear", 1.0))
    if header.field("rope.scaling.type") is None and factor != 1.0:
        kind = "linear"
    attention = _plain(header, "scaling.attn_factor", 1.0)
    trained = int(_plain(header, "scaling.original_context_length", fields["max_position_embeddings"]))
    lists = {tensor: _factors(header, tensor, dimensions, refuse) for tensor in FACTORS if tensor in header.tensors}
    if lists:
        if kind in ("linear", "yarn") and factor != 1.0:
            raise refuse(f"it scales its rotary embedding twice, by {next(iter(lists))} and rope.scaling.type {kind}")
        return _by_factors(lists, fields, trained, attention, refuse)
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": trained,
            "beta_fast": _plain(header, "scaling.yarn_beta_fast", 32.0),
            "beta_slow": _plain(header, "scaling.yarn_beta_slow", 1.0),
            # llama.cpp puts in the second factor by itself.
            "attention_factor": attention * (1 + 0.1 * math.log(factor)),
        }
    if attention != 1.0 or kind not in ("none", "linear"):
        raise refuse(f"it scales its rotary embedding in a way that is not known ({name}.rope.scaling.type {kind})")
    return {"rope_type": "linear", "factor": factor} if kind == "linear" and factor != 1.0 else {}


def _factors(header: Header, name: str, dimensions: int, refuse: Refuse) -> list[float]:
    tensor = header.tensors[name]
    values = header.data(name).reshape(-1).view(np.float32).tolist() if tensor.kind == "F32" else []
    if len(values) != dimensions // 2 or not all(math.isfinite(value) and value > 0 for value in values):
        raise refuse(f"{name} does not hold {dimensions // 2} positive factors")
    return values


def _by_factors(
    lists: dict[str, list[float]], fields: dict[str, Any], trained: int, attention: float, refuse: Refuse
) -> dict[str, Any]:
    """What divides every frequency: by Llama 3's rule where that gives these factors, else as plain lists."""
    if "rope_freqs.weight" in lists:
        if len(lists) > 1:
            raise refuse("it holds rope_freqs.weight beside rope_factors_long.weight or rope_factors_short.weight")
        (same,) = lists.values()
        if all(value == 1.0 for value in same) and attention == 1.0:
            return {}
        return _lists(same, same, fields["max_position_embeddings"], attention)
    if len(lists) != 2:
        raise refuse(f"it holds {next(iter(lists))} alone, where two such tensors belong")
    return _lists(lists[FACTORS[1]], lists[FACTORS[2]], trained, attention)


def _lists(long: list[float], short: list[float], trained: int, attention: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "factor": 1.0,
        "original_max_position_embeddings": trained,
        "attention_factor": attention,
    }


def as_llama3(parameters: dict[str, Any], dimensions: int) -> dict[str, Any]:
    """``parameters`` by Llama 3's rule, if that gives the same factors; unchanged otherwise.

    With low and high ends l and h in units of the trained length n, a frequency of wavelength w is divided by
    1 / ((1 - s) / f + s), where s = (n / w - l) / (h - l), held between 0 and 1.
    """
    if parameters.get("rope_type") != "longrope" or parameters["long_factor"] != parameters["short_factor"]:
        return parameters
    if parameters["attention_factor"] != 1.0:
        return parameters
    factors = np.asarray(parameters["long_factor"], dtype=np.float64)
    base, largest = parameters["rope_theta"], float(factors.max())
    waves = 2 * math.pi * base ** (np.arange(len(factors)) * 2 / dimensions)
    for low, high, trained in _candidates(factors, waves, largest):
        share = np.clip((trained / waves - low) / (high - low), 0.0, 1.0)
        if np.allclose(1 / ((1 - share) / largest + share), factors, rtol=_TOLERANCE):
            return {
                "rope_type": "llama3",
                "rope_theta": base,
                "factor": round(largest, 4),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": trained,
            }
    return parameters


def _candidates(factors: Any, waves: Any, largest: float) -> list[tuple[float, float, int]]:
    """Ends and trained lengths to try: Llama's own, and the line through two factors between the ends."""
    between = (factors > 1 + _TOLERANCE) & (factors < largest - _TOLERANCE)
    tried = [_LLAMA3]
    if largest > 1 and between.sum() >= 2:
        share = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
        slope, start = np.polyfit(1 / waves[between], share, 1)
        if start < 0:
            # Only ratios count, so the low end is 1.
            high = 1 - 1 / start
            tried.append((1.0, round(float(high), 3), round(float(slope * (high - 1)))))
    return tried
