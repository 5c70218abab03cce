"""Which tiles should the decode kernels take here? Each in layers of a decode step, where its neighbours run too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_check.work import Context, Measurement
from prunekit.kernels.tuning.cases import cases

NEEDS_CEILINGS = False
OPS = ("mlp_decode_tile", "linear_decode_tile", "qkv_rope_tile")


def measurements(context: Context) -> Iterator[Measurement]:
    """Tiles with launches that overlap, then the same with launches that wait."""
    sizes = context.sizes
    for overlap in ("on", "off"):
        for op in OPS:
            for each in cases(op, (), (), sizes.layers):
                yield Measurement(
                    f"{label(op, each)}, overlap {overlap}",
                    {"op": op, "sizes": each, "overlap": overlap},
                    lambda op=op, each=each, overlap=overlap: _decode(context, op, each, overlap),
                    needs_s=3.0,
                )


def label(op: str, sizes: dict[str, int]) -> str:
    return f"{op} {' '.join(f'{name}={size}' for name, size in sizes.items())}"


def brief(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    entry = record.get("entry") or record.get("other_entry")
    if not entry:
        return "nothing to choose"
    times = ", ".join(f"{name} {us:,.1f}" for name, us in sorted(entry["us"].items(), key=lambda pair: pair[1]))
    return f"{entry['choice']} of {times} us" + (f"; FAILED {entry['failed']}" if "failed" in entry else "")


def _decode(context: Context, op: str, sizes: dict[str, int], overlap: str) -> dict[str, Any]:
    made = context.chosen(op, sizes, overlap=overlap)
    # A table holds what is best where launches overlap, if they can.
    return {"entry" if overlap == "on" else "other_entry": made}
