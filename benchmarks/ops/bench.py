"""The op level: five arms of every op on layers of an irregular plan, in turns, beside the ceilings of the same run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common.failures import agreement, check_device, describe
from benchmarks.common.tensors import Data
from benchmarks.common.timer import bounded, one_pass, spread
from benchmarks.models.shapes import Model
from benchmarks.ops.cases import Case, neighbours, sampled
from benchmarks.ops.workloads import Baseline, Size, Workload
from prunekit.kernels.tuning.measure import Call, interleaved
from prunekit.plan.shape import LayerShape, ModelShape
from prunekit.utils.timing import Summary

# Seconds that an arm may take to compile and warm up.
PREPARE_S = 120.0
# The arms that are no result by themselves: ours at the aligned widths.
BELOW, ABOVE = "ours_below", "ours_above"


class OpBench:
    """Measures ops on layers of ``shape``, a plan for ``model``; ``ceilings`` are those of this run."""

    def __init__(
        self,
        model: Model,
        shape: ModelShape,
        device: torch.device,
        dtype: torch.dtype,
        ceilings: dict[str, Any],
        *,
        compile_backend: str | None = "inductor",
        samples: int = 3,
        rounds: int = 20,
    ):
        self.model, self.shape = model, shape
        self.device, self.dtype, self.ceilings = device, dtype, ceilings
        self.compile_backend, self.samples, self.rounds = compile_backend, samples, rounds

    def measure(self, case: Case) -> dict[str, Any]:
        """One case as JSON values. An arm that fails holds its error, and the others are measured all the same."""
        kind = case.workload.kind
        layers = sampled(self.shape.layers, kind, self.samples)
        data = Data(self.device, self.dtype)

        def make(widths: Sequence[LayerShape]) -> list[Workload]:
            return [case.workload(self._size(layer, case), data) for layer in widths]

        ours = make(layers)
        # Other tensors for every call of a pass, and more of them than twice the L2 cache holds.
        copies = self._copies(sum(moved_bytes(workload) for workload in ours))
        ours += make(layers * (copies - 1))
        aligned: dict[str, list[Workload]] = {}
        pairs = [neighbours(layer, kind) for layer in layers * copies]
        if pairs and all(pairs):
            aligned[BELOW] = make([pair[0] for pair in pairs if pair])
            aligned[ABOVE] = make([pair[1] for pair in pairs if pair])
        times, errors = self._times(ours, aligned)
        calls = len(ours)
        work = {name: sum(w.work for w in made) / calls for name, made in {"ours": ours, **aligned}.items()}
        arms: dict[str, Any] = {
            name: self._rate(case, [value / calls for value in values], work.get(name, work["ours"]))
            for name, values in times.items()
        }
        checked = "ours" in times and "padded_cublas" in times
        return {
            "op": case.op,
            "case": case.name,
            "prunable": kind is not None,
            "rows": case.rows,
            "context": case.context,
            "layers": [
                [layer.num_attention_heads, layer.num_key_value_heads, layer.intermediate_size] for layer in layers
            ],
            "layer_bytes": [moved_bytes(workload) for workload in ours[: len(layers)]],
            f"{case.workload.unit}_per_call": work["ours"],
            "calls_per_pass": calls,
            "arms": arms | {name: {"error": error} for name, error in errors.items()},
            "irregular_over_aligned": aligned_ratio(times, work),
            **(_agreement(ours[0]) if checked else {}),
        }

    def _size(self, layer: LayerShape, case: Case) -> Size:
        shape = self.shape
        fixed = (shape.hidden_size, shape.head_dim, shape.vocab_size)
        return Size(*fixed, layer, case.rows, case.context, shape.qkv_bias, self.model.eps)

    def _copies(self, moved: int) -> int:
        if self.device.type != "cuda":
            return 1
        cache: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        return -(-2 * cache // moved) + 1

    def _times(
        self, ours: list[Workload], aligned: dict[str, list[Workload]]
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Seconds of a pass of every arm that works, and why the others don't."""
        arms: dict[str, Callable[[], list[Call]]] = {
            "irregular_cublas": lambda: [_call(workload.irregular()) for workload in ours],
            "padded_cublas": lambda: [_call(workload.padded()) for workload in ours],
            "ours": lambda: [workload.ours for workload in ours],
        }
        if self.compile_backend:
            arms["torch_compile"] = lambda: self._compiled(ours)
        for name, made in aligned.items():
            arms[name] = lambda made=made: [workload.ours for workload in made]  # type: ignore[misc]
        passes: dict[str, Call] = {}
        errors: dict[str, str] = {}
        for name, calls in arms.items():
            try:
                with bounded(PREPARE_S):
                    passes[name] = one_pass(calls(), self.device)
            except Exception as error:
                check_device(self.device, error)
                errors[name] = describe(error)
        return interleaved(passes, self.device, rounds=self.rounds), errors

    def _compiled(self, ours: list[Workload]) -> list[Call]:
        torch._dynamo.reset()
        calls = [workload.irregular() for workload in ours]
        compiled = torch.compile(calls[0][0], dynamic=False, backend=self.compile_backend)  # type: ignore[arg-type]
        return [_call((compiled, arguments)) for _, arguments in calls]

    def _rate(self, case: Case, seconds: list[float], work: float) -> dict[str, Any]:
        times = spread(seconds)
        rate = work / times["median_us"] / 1e3  # 1e9 a second
        if case.workload.unit == "bytes":
            return {**times, "gbps": rate, "share_of_copy": rate / self.ceilings["copy_gbps"]}
        return {**times, "tflops": rate / 1e3, "share_of_matmul": rate / 1e3 / self.ceilings["matmul_tflops"]}


def aligned_ratio(times: dict[str, list[float]], work: dict[str, float]) -> dict[str, Any] | None:
    """Time of ours over the time that aligned widths take for the same work: on the line between the aligned widths
    below and above, round by round. None where there is nothing irregular, or an arm failed."""
    if not {"ours", BELOW, ABOVE} <= times.keys():
        return None
    place = (work["ours"] - work[BELOW]) / (work[ABOVE] - work[BELOW])
    aligned = [low + place * (high - low) for low, high in zip(times[BELOW], times[ABOVE], strict=True)]
    ratios = Summary.of([mine / other for mine, other in zip(times["ours"], aligned, strict=True)])
    return {"median": ratios.median, "p20": ratios.p20, "p80": ratios.p80, "count": ratios.count}


def moved_bytes(workload: Workload) -> int:
    """Bytes of the tensors that a call reads."""
    return sum(value.nbytes for value in vars(workload).values() if isinstance(value, torch.Tensor))


def _call(baseline: Baseline) -> Call:
    function, arguments = baseline
    return lambda: function(*arguments)


def _agreement(workload: Workload) -> dict[str, Any]:
    function, arguments = workload.padded()
    expected, out = function(*arguments), workload.ours()
    return agreement(out[0], expected[0]) if isinstance(out, tuple) else agreement(out, expected)
