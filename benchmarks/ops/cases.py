"""Which ops are measured at which sizes, on which layers of a plan, and beside which aligned widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.ops import attention_workloads as attention
from benchmarks.ops import workloads
from benchmarks.ops.workloads import Kind, Workload
from prunekit.plan.shape import LayerShape

# A width is aligned at these multiples: 128 bytes of a 16-bit dtype; pairs of KV heads.
MULTIPLE: dict[Kind, int] = {"ffn": 64, "heads": 2}


@dataclass(frozen=True)
class Case:
    """An op on ``rows`` tokens, and on ``context`` tokens in the cache of each sequence where there is one."""

    name: str
    op: str
    workload: type[Workload]
    rows: int
    context: int = 0

    @property
    def id(self) -> str:
        return f"{self.name}, {self.rows} row{'s' if self.rows > 1 else ''}"


def cases(decode: Sequence[int], prefill: Sequence[int], context: int) -> list[Case]:
    """All cases for these numbers of rows (the first of ``decode`` and the largest of ``prefill`` serve the ops that
    need only one), what matters most first."""
    one, *batches = decode
    prompt = max(prefill)
    steps = [
        Case("mlp_decode", "mlp_decode", workloads.MLPDecode, one),
        Case("linear_decode", "linear_decode", workloads.LinearDecode, one),
        Case("qkv_rope", "qkv_rope", attention.QKVRope, one),
        Case("attention_decode", "attention_decode", attention.AttentionDecode, one, context),
    ]
    return [
        *steps,
        *(Case("mlp", "mlp", workloads.MLP, rows) for rows in prefill),
        Case("gated_act", "gated_act", workloads.GatedAct, prompt),
        Case("rope_cache", "rope_cache", attention.RopeCache, prompt),
        Case("mlp_decode int8", "mlp_decode", workloads.MLPDecodeInt8, one),
        Case("linear_decode int8", "linear_decode", workloads.LinearDecodeInt8, one),
        *(replace(case, rows=rows) for rows in batches for case in steps),
    ]


def unpruned_cases(decode: Sequence[int], prefill: Sequence[int]) -> list[Case]:
    """Cases of widths that no plan changes: once a model is enough."""
    prompt = max(prefill)
    return [
        Case("linear_decode output head", "linear_decode", workloads.OutputHead, decode[0]),
        Case("rms_norm", "rms_norm", workloads.RMSNorm, prompt),
        Case("add_rms_norm", "add_rms_norm", workloads.AddRMSNorm, prompt),
        Case("rms_norm_add", "rms_norm_add", workloads.RMSNormAdd, prompt),
    ]


def width(layer: LayerShape, kind: Kind) -> int:
    """The width that can be irregular."""
    return layer.intermediate_size if kind == "ffn" else layer.num_key_value_heads


def sampled(layers: Sequence[LayerShape], kind: Kind | None, count: int) -> list[LayerShape]:
    """Up to ``count`` layers of different widths, spread over those of a plan; irregular ones where there are any."""
    if kind is None:
        return [layers[0]]
    multiple = MULTIPLE[kind]
    different = {width(layer, kind): layer for layer in layers}
    irregular = {value: layer for value, layer in different.items() if value % multiple and value > multiple}
    chosen = [layer for _, layer in sorted((irregular or different).items())]
    return [chosen[place] for place in sorted({(2 * i + 1) * len(chosen) // (2 * count) for i in range(count)})]


def neighbours(layer: LayerShape, kind: Kind | None) -> tuple[LayerShape, LayerShape] | None:
    """The layer at the aligned widths below and above its own; None where its own is aligned or there is none below."""
    multiple = MULTIPLE[kind] if kind else 1
    own = width(layer, kind or "ffn")
    below = own // multiple * multiple
    if below in (0, own):
        return None
    if kind == "ffn":
        return replace(layer, intermediate_size=below), replace(layer, intermediate_size=below + multiple)
    pair = [
        replace(layer, num_key_value_heads=kv, num_attention_heads=kv * layer.group_size)
        for kv in (below, below + multiple)
    ]
    return pair[0], pair[1]
