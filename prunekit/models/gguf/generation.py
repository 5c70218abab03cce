"""How texts end and tokens are drawn, as a GGUF file says it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from prunekit.models.gguf.tokenizer import ends

if TYPE_CHECKING:
    from prunekit.models.gguf.header import Header

# Keys below general.sampling, by transformers' names. llama.cpp's others are its programs' own.
_SAMPLING = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_PENALTY = "penalty_repeat"


def set_generation(header: Header, generation: Any) -> None:
    """Give transformers' ``generation`` every end token and the sampling defaults of the file."""
    if len(named := ends(header)) > 1:
        generation.eos_token_id = named
    found = {name: _number(header, key) for key, name in _SAMPLING.items()}
    found = {name: value for name, value in found.items() if value is not None}
    # A temperature of 0 is llama.cpp's way to say that nothing is drawn.
    if found and found.get("temperature") != 0:
        generation.update(do_sample=True, **found)
    if penalty := _number(header, _PENALTY):
        generation.repetition_penalty = penalty


def _number(header: Header, key: str) -> float | int | None:
    value: Any = header.fields.get(f"general.sampling.{key}")
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        return None
    # GGUF keeps it in float32.
    return int(value) if key == "top_k" else float(f"{value:.6g}")
