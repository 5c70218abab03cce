"""A candidate in the format that will ship: exported for a moment, to know its size and how good its weights are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.in_memory import pruned_in_memory
from prunekit.checkpoint.layout import padded
from prunekit.checkpoint.rebuild import rebuild
from prunekit.errors import PrunekitError
from prunekit.export.export import export
from prunekit.export.target import Options, prepared
from prunekit.models.source import resolve
from prunekit.pipeline.candidates.asked import Format
from prunekit.pipeline.candidates.kept import Measured
from prunekit.pipeline.candidates.quality import Judge
from prunekit.plan import Plan, whole_plan
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.names import pathless

if TYPE_CHECKING:
    import torch

    from prunekit.models.source import Source

# llama.cpp keeps keys and values in float16, whatever the weights are in.
_GGUF_KV_BYTES = 2


def why_not(format_: Format) -> str | None:
    """Why nothing can be exported in that format here; None where it can."""
    from prunekit.export.export import check_packages

    try:
        check_packages(format_.target, verify=False)
    except PrunekitError as error:
        return str(error)
    return None


def shipped(
    source: Source,
    format_: Format,
    judge: Judge,
    device: str,
    beside: Path | None,
    plan: Plan | None = None,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Measured:
    """``source``, pruned by ``plan`` with ``weights`` where there is one, as the export that `prunekit export` writes:
    the bytes of its file, and where the format rounds weights below 16 bits the quality of the model with the weights
    that the file holds, computed in float32 by PyTorch. Checkpoint and export lie in a temporary folder in ``beside``
    meanwhile.

    What can't be exported is told in the result and not raised.
    """
    began = time.perf_counter()
    try:
        with temporary_folder("candidate", beside) as place:
            small = source
            if plan is not None:
                rebuild(source, plan, place / "model", weights=weights)
                small = resolve(str(place / "model"))
            facts = _export(small, format_, place / "export")
            made = Measured()
            if format_.rounds:
                made = judge.of(_rounded(small, format_, place / "export", device))
    except PrunekitError as error:
        return Measured(why=pathless(str(error)), seconds=time.perf_counter() - began)
    return replace(made, seconds=time.perf_counter() - began, facts=facts)


def _export(small: Source, format_: Format, folder: Path) -> dict[str, Any]:
    """Export into ``folder``. Returns what is to be known of it, as JSON values."""
    made = export(small, format_.target.name, folder, Options(dtype=format_.dtype), verify=False)
    facts: dict[str, Any] = {
        "file_bytes": made.file_bytes,
        "decode_bytes": made.written.decode_bytes,
        "notes": list(made.written.notes),
    }
    if "file" in made.written.facts:
        file = folder / str(made.written.facts["file"])
        facts |= {"file_bytes": file.stat().st_size, "kv_bytes_per_token": _gguf_kv_bytes(file)}
    if "fallback_bytes" in made.written.facts:
        facts["fallbacks"] = _fallbacks(file, format_.dtype, int(made.written.facts["fallback_bytes"]))
    return facts


def _fallbacks(file: Path, dtype: str, extra: int) -> dict[str, Any]:
    """How many tensors are stored in a larger type than wished, because their rows don't fill its blocks, and the bytes
    ``extra`` that this costs; by layer, those of the tensors whose rows are as long as the FFN or the query heads."""
    from prunekit.export.formats.gguf.quantize import fallbacks
    from prunekit.models.gguf.header import read_header

    found = fallbacks(read_header(file).tensors.values(), dtype)
    by_part: dict[str, dict[str, int]] = {"ffn": {}, "heads": {}}
    for each in found:
        _, layer, *rest = each.name.split(".")
        part = {"ffn_down": "ffn", "attn_output": "heads"}.get(rest[0]) if rest else None
        if part is not None:
            by_part[part][layer] = each.extra_bytes
    return {"tensors": len(found), "bytes": extra, **by_part}


def _gguf_kv_bytes(file: Path) -> int:
    """Bytes of KV cache a token, of the layers as the file has them (a twin's are padded)."""
    from prunekit.models.gguf.header import read_header

    header = read_header(file)
    heads, layers = header.field("attention.head_count_kv"), header.field("block_count")
    total = sum(heads) if isinstance(heads, list) else heads * layers
    return int(total * (header.field("attention.key_length") + header.field("attention.value_length")) * _GGUF_KV_BYTES)


def _rounded(small: Source, format_: Format, folder: Path, device: str) -> Any:
    """The model of ``small`` in float32 with the weights as the export in ``folder`` holds them."""
    import torch

    job = prepared(format_.target, small, Options(dtype=format_.dtype))
    multiple = job.options.pad_ffn or 1
    wide = [padded(layer, multiple) for layer in small.shape.layers]
    # What was exported had its FFNs padded; that checkpoint is gone, and its shapes are all that is asked for.
    job = replace(job, source=replace(small, shape=small.shape.with_layers(wide)))
    stored = format_.target.stored_weights(job, folder)
    assert stored is not None, "the format rounds"
    options: dict[str, Any] = {"dtype": "float32", "device": device, "ffn_multiple": multiple}
    model = pruned_in_memory(small, whole_plan(small.shape), **options)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name in stored:
            if name in own:
                own[name].copy_(stored[name])
    return model
