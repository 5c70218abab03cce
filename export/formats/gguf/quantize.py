"""Number formats of GGUF: what is written directly, what llama.cpp's quantiser makes, and what it could not make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import PrunekitError
from prunekit.models.gguf.header import Tensor

# Written without llama.cpp; the others are made by its quantiser.
DIRECT = ("f16", "f32", "bf16", "q8_0")
QUANTISED = ("q6_k", "q5_k_m", "q4_k_m", "q4_0", "q3_k_m", "q2_k")
# The file types of the format (general.file_type), which are also what the quantiser is asked for.
FILE_TYPES = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q8_0": 7,
    "q2_k": 10,
    "q3_k_m": 12,
    "q4_k_m": 15,
    "q5_k_m": 17,
    "q6_k": 18,
    "bf16": 32,
}
# What the quantiser takes where a row is no multiple of 256, and what it most likely wished for; and the reverse.
_ORIGINS = {"Q5_0": "Q4_K", "Q5_1": "Q5_K", "Q8_0": "Q6_K"}
_DEMOTED = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0"}
# The type that most tensors get.
_MAIN = {
    "q8_0": "Q8_0",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_0": "Q4_0",
    "q3_k_m": "Q3_K",
    "q2_k": "Q2_K",
}


# "warning: blk.0.ffn_down.weight - ncols 501 not divisible by 256 (required for type q6_K)"
_WISH = re.compile(r"(\S+\.weight)\s+- ncols\s+\d+ not divisible by\s+\d+ \(required for type\s+(\w+)\)")


def quantise(source: Path, target: Path, dtype: str) -> dict[str, str]:
    """Make ``target`` of the unquantised GGUF ``source`` with llama.cpp.

    Returns the type that the quantiser wished for, for tensors that it had to give a larger one. Raises PrunekitError
    where it fails.
    """
    import llama_cpp

    from prunekit.export.formats.gguf.runner import LOG, cores

    LOG.install()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[dtype]
    params.nthread = cores()
    with LOG.kept() as lines:
        code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(target), params)
    if code:
        raise PrunekitError(
            f"llama.cpp could not quantise the model to {dtype}: {LOG.last_error or 'no reason given'}."
        )
    return {match[1]: match[2].upper() for line in lines if (match := _WISH.search(line))}


@dataclass(frozen=True)
class Fallback:
    """A tensor that is stored larger than wished, because its rows are no multiple of the wished type's block."""

    name: str
    width: int
    wished: str
    stored: str
    extra_bytes: int


def fallbacks(tensors: Iterable[Tensor], dtype: str, wishes: Mapping[str, str] | None = None) -> list[Fallback]:
    """What fell back, read off the types that a file really holds.

    ``wishes`` are what :func:`quantise` returned; a tensor it does not name is taken to have been wished as its type's
    usual origin.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype not in _MAIN:
        return []
    main = _MAIN[dtype]
    found = []
    for tensor in tensors:
        stored, width = tensor.kind, tensor.shape[-1]
        if len(tensor.shape) < 2 or stored == main or "_norm" in tensor.name:
            continue
        wished = (wishes or {}).get(tensor.name)
        if wished is None and stored == "F16":
            wished = main
        elif wished is None and block_of(main) == 256 and width % 256:
            wished = _ORIGINS.get(stored, main)
        if wished is None:
            continue
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[wished]]
        extra = tensor.nbytes - round(tensor.values * size / block)
        if stored != wished and extra > 0:
            found.append(Fallback(tensor.name, width, wished, stored, extra))
    return found


def block_of(kind: str) -> int:
    """Values in a block of a type: rows must be a multiple."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    return int(GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0])


def padding_gain(tensors: Mapping[str, Tensor], found: Iterable[Fallback], multiple: int) -> int:
    """Bytes that a file gets smaller by (negative: larger) where every FFN is padded to a multiple of channels."""
    wished = {each.name: each.wished for each in found}
    gain = 0
    for name, down in tensors.items():
        if not name.endswith(".ffn_down.weight"):
            continue
        width = down.shape[-1]
        padded = -(-width // multiple) * multiple
        kind = wished.get(name, down.kind)
        if padded % block_of(kind):
            kind = _DEMOTED.get(kind, kind)
        gain += down.nbytes - down.shape[0] * _row_bytes(kind, padded)
        for other in ("gate", "up"):
            tensor = tensors.get(name.replace("ffn_down", f"ffn_{other}"))
            if tensor is not None:
                # Phi-3's up holds the gate as well.
                gain -= (padded - width) * tensor.shape[0] // width * (tensor.nbytes // tensor.shape[0])
    return gain


def _row_bytes(kind: str, width: int) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return int(width // block * size)


def fallback_notes(tensors: Mapping[str, Tensor], found: list[Fallback], dtype: str) -> tuple[str, ...]:
    """Sentences about what fell back, what it costs and what to do."""
    if not found:
        return ()
    block = block_of(_MAIN[dtype])
    multiple = max((32, block), key=lambda multiple: padding_gain(tensors, found, multiple))
    gain = padding_gain(tensors, found, multiple)
    groups = (
        (
            "FFN (ffn_down)",
            [each for each in found if ".ffn_down." in each.name],
            f" With `--pad-ffn {multiple}`, which adds channels of zeros, the file would be {_mib(gain)} smaller."
            if gain > 0
            else "",
        ),
        (
            "query heads (attn_output)",
            [each for each in found if ".attn_output." in each.name],
            " Only keeping another number of query heads would change that.",
        ),
        (
            "hidden size",
            [each for each in found if ".ffn_down." not in each.name and ".attn_output." not in each.name],
            " That is the dense model's own width.",
        ),
    )
    notes = []
    for what, group, remedy in groups:
        if group:
            kinds = ", ".join(sorted({f"{each.wished} to {each.stored}" for each in group}))
            notes.append(
                f"{len(group)} tensor{'s' * (len(group) > 1)} fell back to larger types ({kinds}), because rows as "
                f"long as the {what} are no multiple of {block} (first {group[0].name} with {group[0].width}); that "
                f"costs {_mib(sum(each.extra_bytes for each in group))}.{remedy}"
            )
    return tuple(notes)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.2f} MiB"
