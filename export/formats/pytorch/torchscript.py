"""A traced TorchScript program: one file that LibTorch loads, in Python or C++, without transformers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.export.device import kind_of
from prunekit.export.formats.pytorch.runner import (
    TORCH_DTYPES,
    GraphRunner,
    check_rope,
    decode_bytes,
    read_model_json,
    usage_snippet,
    write_model_json,
)
from prunekit.export.target import CPU, Job, Requirement, Target, Written, runtime_errors
from prunekit.models.runner import Runner
from prunekit.utils.files.full_disk import has_room
from prunekit.utils.quiet import quiet

MODEL_FILE = "model.pt"


@contextmanager
def _no_tracer_warnings() -> Iterator[None]:
    """Tracing warns of every Python condition on a tensor and of its own deprecation; the tests cover the first."""
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        yield


def bind_to(program: Any, device: str) -> None:
    """Have ``program``, a TorchScript module whose weights are on ``device``, make its own tensors there: a trace holds
    the device that it was made on as a constant, which loading elsewhere leaves as it is. Tensors of one number stay on
    the CPU, which any device takes; some of them are read as sizes, and reading one from a GPU waits for it. Before the
    program runs for the first time."""
    for module in program.modules():
        for name in module._c._method_names():
            for node in module._c._get_method(name).graph.findAllNodes("prim::Constant"):
                kind = node.output().type().kind()
                if kind == "DeviceObjType":
                    node.s_("value", device)
                elif kind == "TensorType":
                    value = node.t("value")
                    node.t_("value", value.to(device if value.ndim else CPU))


def _save(traced: Any, file: Path) -> None:
    """Write the program. Given a name, LibTorch ends the process where the disk is full; given an open file, it takes
    three more times the memory of the weights. So it gets a name only where there is room for twice as much."""
    import torch

    size = sum(each.numel() * each.element_size() for each in (*traced.parameters(), *traced.buffers()))
    if has_room(file.parent, 2 * size + (64 << 20)):
        traced.save(str(file))
        return
    with file.open("wb") as opened:
        torch.jit.save(traced, opened)


class TorchScript(Target):
    name = "torchscript"
    summary = "A TorchScript program, traced, with its KV cache as tensors in and out."
    dtypes = ("fp32", "fp16", "bf16")
    writes_with = (Requirement("torch"),)
    runs_with = (Requirement("torch"),)
    devices = (CPU, "cuda")
    program = "TorchScript can read and write files"
    limits = (
        "PyTorch has deprecated TorchScript: take torch-export for anything new.",
        "A program holds the kind of device that it makes its masks on: export with --device cuda for a GPU.",
        "fp16 is slow on CPUs without half-precision arithmetic; take fp32 or bf16 there.",
    )

    def check(self, job: Job) -> None:
        check_rope(job)

    def write(self, job: Job, folder: Path) -> Written:
        import torch

        from prunekit.export.formats.pytorch.forward import TorchForward, torch_inputs

        dtype = TORCH_DTYPES[job.dtype]
        forward = TorchForward(job.load(dtype), job.source.family).eval()
        # More than one of everything, or the trace takes a 1 for a constant; all different, for the same reason.
        example = torch_inputs(job.source.shape, batch=2, length=7, past=5, kept=3, dtype=getattr(torch, dtype))
        with _no_tracer_warnings(), runtime_errors("TorchScript could not trace the model"), torch.no_grad():
            traced = torch.jit.trace(forward, example, check_trace=False)
            bind_to(traced, kind_of(job.device))
        refused = runtime_errors("TorchScript could not write the program")
        with _no_tracer_warnings(), refused:
            _save(traced, folder / MODEL_FILE)
        placed = write_model_json(job, folder, dtype)
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        return Written(
            notes=("PyTorch has deprecated TorchScript; torch-export is its successor.",),
            decode_bytes=decode_bytes(job.source.shape, dtype),
            facts={"example": {"batch": 2, "length": 7, "past": 5}},
            placed=placed,
        )

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        facts = read_model_json(folder)
        with _no_tracer_warnings(), runtime_errors(f"TorchScript could not load {folder / MODEL_FILE}"):
            graph = torch.jit.load(str(folder / MODEL_FILE), map_location=device).eval()
            bind_to(graph, device)
        return GraphRunner(graph, facts, device)

    def usage(self, job: Job) -> str:
        kind = kind_of(job.device)
        where = f', map_location="{kind}"' if job.on_gpu else ""
        load = f'model = torch.jit.load("{MODEL_FILE}"{where}).eval()'
        faster = (
            "`torch.jit.optimize_for_inference(model)` decodes about a fifth faster, for twice the memory and with "
            "other rounding.\n"
            if job.dtype == "fp32" and not job.on_gpu
            else ""
        )
        tokenizer = (job.source.path / "tokenizer.json").is_file()
        return f"It needs PyTorch alone.\n\n{usage_snippet(load, tokenizer, kind)}\n{faster}"
