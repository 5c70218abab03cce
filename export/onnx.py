"""ONNX with a KV cache, for ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

from prunekit.checkpoint import copy_tokenizer
from prunekit.export.base import Job, Requirement, Target, Written
from prunekit.export.onnx_write import MODEL, export_onnx
from prunekit.runner import Runner

__all__ = ["Onnx", "export_onnx"]


class Onnx(Target):
    name = "onnx"
    summary = "One ONNX graph with its KV cache, for ONNX Runtime."
    dtypes = ("fp32", "fp16")
    writes_with = (
        Requirement("onnx", extra="onnx"),
        Requirement("onnxscript", extra="onnx"),
        Requirement("optimum", extra="onnx"),
    )
    runs_with = (Requirement("onnxruntime", extra="onnx", distributions=("onnxruntime-gpu",)),)

    def write(self, job: Job, folder: Path) -> Written:
        export_onnx(job, folder)
        copy_tokenizer(job.source.path, folder)
        return Written(decode_bytes=job.source.shape.decode_bytes({"fp32": 4, "fp16": 2}[job.dtype]))

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        from prunekit.export.onnx_runner import OnnxRunner

        return OnnxRunner(folder / MODEL, threads)

    def usage(self, job: Job) -> str:
        return ""
