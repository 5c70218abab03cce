"""torch.export's .pt2: a graph of ATen operators, or (``aot``) machine code that AOTInductor made of it."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.device import device_facts, kind_of
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
from prunekit.utils.files.full_disk import patient_file
from prunekit.utils.machine import cpu_name
from prunekit.utils.process.child import find_program, safe_children
from prunekit.utils.quiet import quiet

if TYPE_CHECKING:
    import torch

PROGRAM = "model.pt2"
PACKAGE = "compiled.pt2"


@contextmanager
def _quietly() -> Iterator[None]:
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        yield


def exported_program(job: Job, dtype: str) -> torch.export.ExportedProgram:
    """The model as torch.export's graph of :class:`~prunekit.export.formats.pytorch.forward.TorchForward`, in ``dtype``
    (a name in torch). Batch, length, past and the number of wanted logits are free."""
    import torch
    from torch.export import Dim

    from prunekit.export.formats.pytorch.forward import TorchForward, torch_inputs

    shape = job.source.shape
    forward = TorchForward(job.load(dtype), job.source.family).eval()
    # All lengths differ and none is 0 or 1, which torch.export takes for constants or for each other.
    example = torch_inputs(shape, batch=3, length=7, past=5, kept=4, dtype=getattr(torch, dtype))
    batch, length, past, kept = Dim("batch"), Dim("length"), Dim("past"), Dim("kept")
    dims = (
        {0: batch, 1: length},
        {0: batch, 1: Dim("total")},
        {0: batch, 1: length},
        {0: kept},
        tuple({0: batch, 2: past} for _ in example[4:]),
    )
    with _quietly(), runtime_errors("torch.export could not export the model"), torch.no_grad():
        program = torch.export.export(forward, example, dynamic_shapes=dims, strict=False)
    for node in program.graph.nodes:
        # Where each operator was in the source: paths of this machine, and most of the file beside the weights.
        node.meta.pop("stack_trace", None)
    return program


def moved(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    """``program``, its weights, constants and what its operators make on ``device``. It is changed itself."""
    from torch.export.passes import move_to_device_pass

    with _quietly():
        return move_to_device_pass(program, device)


def compile_package(program: torch.export.ExportedProgram, path: Path) -> None:
    """Compile ``program`` for the device it is on into the AOTInductor package ``path``. Raises PrunekitError where
    that fails."""
    import torch
    from torch._inductor.utils import fresh_cache

    # Threads are the runner's choice, not a constant of the kernels. What the compiler leaves (the weights twice) goes.
    # Headers are compiled beforehand to be used again, which these would never be.
    settings = {"cpp.dynamic_threads": True, "cpp_cache_precompile_headers": False}
    refused = runtime_errors("AOTInductor could not compile the model")
    with _quietly(), refused, fresh_cache(), safe_children(), patient_file(path) as file:
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=settings)  # type: ignore[arg-type]


def compiled_for(device: str = CPU) -> dict[str, str]:
    """What AOTInductor compiles for: processor, vector instructions and system, or GPU, its compute capability and
    system."""
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    if device != CPU:
        gpu = device_facts(device)
        return {
            "processor": gpu["name"],
            "instructions": f"compute capability {gpu['capability']}",
            "system": f"{platform.system()} {platform.machine()}",
        }
    return {
        "processor": cpu_name(),
        "instructions": str(pick_vec_isa()) or "none",
        "system": f"{platform.system()} {platform.machine()}",
    }


def compiler() -> str | None:
    """The C++ compiler that AOTInductor will call, None where there is none."""
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return find_program(wanted.split()[0])


def check_capability(facts: Mapping[str, Any], device: str) -> None:
    """Raises PrunekitError where machine code, which ``facts`` tell of, was made for another kind of GPU."""
    made, here = facts.get("compiled_for"), compiled_for(device)
    if not isinstance(made, dict) or made.get("instructions") != here["instructions"]:
        wanted = f"{made.get('processor')}, {made.get('instructions')}" if isinstance(made, dict) else "another device"
        raise PrunekitError(
            f"This export was compiled for {wanted}, and {device} is {here['processor']}, {here['instructions']}; "
            "export the model again here."
        )


class TorchExport(Target):
    name = "torch-export"
    summary = "A program of torch.export, with its KV cache as tensors in and out."
    dtypes = ("fp32", "fp16", "bf16")
    writes_with = (Requirement("torch"),)
    runs_with = (Requirement("torch"),)
    devices = (CPU, "cuda")
    compiles = True
    program = "a .pt2 file can hold Python objects, expressions and machine code that run when it is loaded"
    limits = (
        "model.pt2 holds CPU tensors: torch.export.passes.move_to_device_pass moves a loaded one to a GPU.",
        "--aot needs a C++ compiler (for a GPU also Triton), takes a minute for a model of 30 layers, and its result "
        "runs only on CPUs with the instructions of this one, or on GPUs of the same compute capability.",
        "fp16 is slow on CPUs without half-precision arithmetic; take fp32 or bf16 there.",
    )

    def check(self, job: Job) -> None:
        check_rope(job)
        if job.options.aot and compiler() is None:
            raise PrunekitError(
                "Compiling ahead of time needs a C++ compiler, and there is none here: install g++ (or name one in "
                "the variable CXX), or leave --aot out."
            )
        if job.options.aot and job.on_gpu and find_spec("triton") is None:
            raise PrunekitError(
                "Compiling for a GPU needs Triton, and this PyTorch has none; run `pip install triton`, or leave --aot "
                "out."
            )

    def write(self, job: Job, folder: Path) -> Written:
        import torch

        dtype = TORCH_DTYPES[job.dtype]
        program = exported_program(job, dtype)
        notes: tuple[str, ...] = ()
        facts: dict[str, Any] = {"aot": job.options.aot}
        if job.options.aot:
            compile_package(moved(program, job.device), folder / PACKAGE)
            facts["compiled_for"] = compiled_for(job.device)
            notes = (
                f"{PACKAGE} is machine code for {' · '.join(facts['compiled_for'].values())}; on a machine without "
                "these instructions it can't run.",
            )
        else:
            refused = runtime_errors("torch.export could not write the program")
            with _quietly(), refused, patient_file(folder / PROGRAM) as file:
                torch.export.save(program, file)  # type: ignore[arg-type]
        placed = write_model_json(job, folder, dtype, **facts)
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        runs_on = (kind_of(job.device),) if job.options.aot else None
        return Written(notes, decode_bytes(job.source.shape, dtype), facts, placed, runs_on)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        facts = read_model_json(folder)
        compiled = (folder / PACKAGE).is_file()
        path = folder / (PACKAGE if compiled else PROGRAM)
        if compiled and device != CPU:
            check_capability(facts, device)
        with _quietly(), runtime_errors(f"PyTorch could not load {path}"):
            graph: Any
            if compiled:
                index = -1 if device == CPU else torch.device(device).index or 0
                graph = torch._inductor.aoti_load_package(str(path), device_index=index)
            else:
                graph = moved(torch.export.load(str(path)), device).module()
        return GraphRunner(graph, facts, device)

    def usage(self, job: Job) -> str:
        kind = kind_of(job.device)
        load = f'model = torch.export.load("{PROGRAM}").module()'
        if job.on_gpu:
            load = (
                "from torch.export.passes import move_to_device_pass\n\n"
                f'model = move_to_device_pass(torch.export.load("{PROGRAM}"), "{kind}").module()'
            )
        if job.options.aot:
            load = f'import torch._inductor\n\nmodel = torch._inductor.aoti_load_package("{PACKAGE}")'
        tokenizer = (job.source.path / "tokenizer.json").is_file()
        cpp = (
            "\nFrom C++: `torch::inductor::AOTIModelPackageLoader`. It does not check what it is given: tensors must "
            "be contiguous and of the types below.\n"
            if job.options.aot
            else ""
        )
        return f"It needs PyTorch alone.\n{cpp}\n{usage_snippet(load, tokenizer, kind)}"
