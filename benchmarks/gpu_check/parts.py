"""The three parts of the check, each a sequence of measurements in the order of what matters most."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.record import Recorder, passed
from benchmarks.common.run_info import describe_run
from benchmarks.common.tensors import Data
from benchmarks.gpu_check.ceilings import ceilings
from benchmarks.models.shapes import MODELS, TINY, Model, pruned_shape
from benchmarks.ops import attention_checks, checks
from benchmarks.ops.bench import OpBench
from benchmarks.ops.cases import Case, cases, unpruned_cases
from benchmarks.ops.correctness import run_check
from prunekit.kernels.ops.utils.backend import why_not_triton


@dataclass(frozen=True)
class Scale:
    """How large everything is, and how long it may take."""

    models: tuple[Model, ...]
    shares: tuple[int, ...]
    checks: tuple[checks.Sizes, ...]
    dtypes: tuple[torch.dtype, ...]
    measured_in: torch.dtype
    decode_rows: tuple[int, ...] = (1, 8)
    prefill_rows: tuple[int, ...] = (2048, 128)
    context: int = 2048
    # Batch sizes and prompts of the model level; what is first is measured first, for all models.
    serving: tuple[tuple[tuple[int, int], ...], ...] = (
        ((1, 128), (1, 2048)),
        ((8, 128), (64, 128), (8, 2048), (64, 2048)),
    )
    tokens: int = 32
    # The whole model that is checked, its prompt and its decode steps.
    checked_model: Model = MODELS["smollm2-135m"]
    checked_tokens: tuple[int, int] = (33, 8)
    op_rounds: int = 20
    model_rounds: int = 7
    samples: int = 3
    op_compile: str | None = "inductor"
    model_compile: dict[str, Any] | None = None


def real_scale(models: Sequence[str], shares: Sequence[int], dtype: torch.dtype, compile: bool) -> Scale:
    """The shapes of real models on a GPU."""
    dtypes = tuple(one for one in (torch.bfloat16, torch.float16) if why_not_triton(torch.device("cuda"), one) is None)
    return Scale(
        tuple(MODELS[name] for name in models),
        tuple(shares),
        (checks.REAL, checks.NARROW),
        dtypes,
        dtype,
        op_compile="inductor" if compile else None,
        model_compile={"mode": "reduce-overhead", "fullgraph": True} if compile else None,
    )


def tiny_scale(compile: bool) -> Scale:
    """A rehearsal: the interpreter is slow, and computes bfloat16 wrongly."""
    return Scale(
        (TINY,),
        (40,),
        (checks.TINY,),
        (torch.float16,),
        torch.float16,
        decode_rows=(1, 2),
        prefill_rows=(17,),
        context=20,
        serving=(((1, 17), (2, 9)),),
        tokens=1,
        checked_model=TINY,
        checked_tokens=(6, 2),
        op_rounds=1,
        model_rounds=1,
        samples=1,
        op_compile="aot_eager" if compile else None,
        model_compile={"backend": "aot_eager", "fullgraph": True} if compile else None,
    )


class Work:
    """Does parts of the check on one device and records them."""

    def __init__(self, scale: Scale, device: torch.device, arguments: argparse.Namespace):
        self.scale, self.device, self.arguments = scale, device, arguments
        self.header = describe_run(device, arguments)
        self.is_rehearsal = device.type != "cuda"
        self._shape = lru_cache(None)(pruned_shape)

    def run(self, part: str) -> None:
        """One of the parts, from where it stopped."""
        path = Path(self.arguments.out) / f"{self.arguments.stem}_{part}.json"
        known = {name for file in self.arguments.after for name in passed(file)} if part == "correctness" else set()
        recorder = Recorder(path, part, self.header, self.arguments.deadline, known)
        {"correctness": self._correctness, "ops": self._ops, "models": self._models}[part](recorder)
        recorder.finish()

    def _correctness(self, recorder: Recorder) -> None:
        for dtype in self.scale.dtypes:
            data = Data(self.device, dtype)
            name = str(dtype).removeprefix("torch.")
            listed = [
                check
                for sizes in self.scale.checks
                for make in (checks.ffn_checks, attention_checks.attention_checks)
                for check in make(data, sizes)
            ]
            # Every op once first, so that a run that is cut off has seen them all.
            seen: dict[str, int] = {}
            order = []
            for check in listed:
                seen[check.op] = seen.get(check.op, -1) + 1
                order.append((seen[check.op], check))
            for _, check in sorted(order, key=lambda pair: pair[0]):
                fields = {"op": check.op, "case": check.label, "dtype": name}
                record = recorder.measure(
                    f"{check.op}, {name}, {check.label}",
                    fields,
                    lambda check=check: run_check(check, self.device),  # type: ignore[misc]
                    limit_s=120,
                    needs_s=5,
                )
                if record and not record.get("ok"):
                    print(f"  FAILED {record['id']}: {record.get('error') or record['why']}", flush=True)
        if self.arguments.why_no_models:
            recorder.data["note"] = self.arguments.why_no_models
            return
        from benchmarks.models.check import check_model

        small = self.scale.checked_model
        shape = self._shape(small.shape, 40)
        for dtype in self.scale.dtypes:
            name = str(dtype).removeprefix("torch.")
            record = recorder.measure(
                f"runtime, {name}, {small.name}",
                {"op": "runtime", "case": small.name, "dtype": name},
                lambda dtype=dtype: check_model(small, shape, self.device, dtype, *self.scale.checked_tokens),  # type: ignore[misc]
                limit_s=300,
                needs_s=20,
            )
            if record and not record.get("ok"):
                print(f"  FAILED {record['id']}: {record.get('error') or record['why']}", flush=True)

    def _ceilings(self, recorder: Recorder) -> dict[str, Any]:
        if "ceilings" not in recorder.data:
            recorder.data["ceilings"] = ceilings(self.device, self.scale.measured_in, tiny=self.is_rehearsal)
        found: dict[str, Any] = recorder.data["ceilings"]
        print(
            f"  copy {found['copy_gbps']:,.1f} GB/s, read {found['read_gbps']:,.1f} GB/s, "
            f"matmul {found['matmul_tflops']:,.3f} TFLOP/s",
            flush=True,
        )
        return found

    def _ops(self, recorder: Recorder) -> None:
        scale, best = self.scale, self._ceilings(recorder)
        listed = cases(scale.decode_rows, scale.prefill_rows, scale.context)
        fixed = unpruned_cases(scale.decode_rows, scale.prefill_rows)
        first, *others = scale.shares
        order = [(first, case) for case in listed] + [(0, case) for case in fixed]
        order += [(percent, case) for percent in others for case in listed]
        for percent, case in order:
            for model in scale.models:
                self._op(recorder, best, model, percent, case)

    def _op(self, recorder: Recorder, best: dict[str, Any], model: Model, percent: int, case: Case) -> None:
        def measure() -> dict[str, Any]:
            bench = OpBench(
                model,
                self._shape(model.shape, percent),
                self.device,
                self.scale.measured_in,
                best,
                compile_backend=self.scale.op_compile,
                samples=self.scale.samples,
                rounds=self.scale.op_rounds,
            )
            return bench.measure(case)

        fields = {"op": case.op, "case": case.name, "model": model.name, "pruned_percent": percent, "rows": case.rows}
        name = f"{model.name}, {percent} % pruned, {case.id}"
        record = recorder.measure(name, fields, measure, limit_s=400, needs_s=15)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if record:
            print(f"  {name}: {_brief(record, 'median_us')}", flush=True)

    def _models(self, recorder: Recorder) -> None:
        if self.arguments.why_no_models:
            print(f"  {self.arguments.why_no_models}", flush=True)
            recorder.data["note"] = self.arguments.why_no_models
            return
        best = self._ceilings(recorder)
        for serving in self.scale.serving:
            for model in self.scale.models:
                for percent in (0, *self.scale.shares):
                    self._model(recorder, best, model, percent, serving)

    def _model(
        self, recorder: Recorder, best: dict[str, Any], model: Model, percent: int, serving: Sequence[tuple[int, int]]
    ) -> None:
        from benchmarks.models.bench import ModelBench

        names = {
            f"{model.name}, {percent} % pruned, batch {batch}, prompt {prompt}": (batch, prompt)
            for batch, prompt in serving
        }
        bench: list[ModelBench] = []

        def measure(batch: int, prompt: int) -> dict[str, Any]:
            if not bench:
                bench.append(
                    ModelBench(
                        model,
                        self._shape(model.shape, percent),
                        self.device,
                        self.scale.measured_in,
                        best,
                        compile_options=self.scale.model_compile,
                        tokens=self.scale.tokens,
                        rounds=self.scale.model_rounds,
                    )
                )
            return bench[0].measure(batch, prompt)

        for name, (batch, prompt) in names.items():
            fields = {"model": model.name, "pruned_percent": percent, "batch": batch, "prompt": prompt}
            record = recorder.measure(
                name,
                fields,
                lambda batch=batch, prompt=prompt: measure(batch, prompt),  # type: ignore[misc]
                limit_s=600,
                needs_s=40,
            )
            if record:
                print(f"  {name}: {_brief(record, 'tpot')}", flush=True)
        for one in bench:
            one.close()


def _brief(record: dict[str, Any], figure: str) -> str:
    """One line a record, for whoever watches."""
    if "error" in record:
        return f"FAILED {record['error']}"

    def text(arm: dict[str, Any]) -> str:
        if "error" in arm:
            return f"FAILED {arm['error'][:100]}"
        found = arm.get(figure)
        return f"{found['median_us'] if isinstance(found, dict) else found:,.2f} us"

    return ", ".join(f"{name} {text(arm)}" for name, arm in record["arms"].items())


def parts_of(asked: str) -> tuple[str, ...]:
    """The parts that an argument names, in their order."""
    every = ("correctness", "ops", "models")
    return every if asked == "all" else (asked,)


def work(arguments: argparse.Namespace, device: torch.device) -> None:
    """All parts that were asked for, in this process."""
    if device.type == "cuda":
        dtype = torch.bfloat16 if why_not_triton(device, torch.bfloat16, dot=True) is None else torch.float16
        scale = real_scale(arguments.models, arguments.shares, dtype, arguments.compile)
    else:
        scale = tiny_scale(arguments.compile)
    if arguments.tokens:
        scale = replace(scale, tokens=arguments.tokens)
    doer = Work(scale, device, arguments)
    for part in parts_of(arguments.part):
        print(f"{part}:", flush=True)
        doer.run(part)
