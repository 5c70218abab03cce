"""Triton's compiled kernels, made where there is no GPU, and taken along: `make gpu-cache`.

A kernel's key is made of Triton's own files, its assembler, the kernel's source and arguments, and the compute
capability, but not of the machine. So what is compiled on a CPU is found on a GPU of that kind, where Triton, its
assembler and the sources are the same; a manifest in the folder says with which they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.common.record import Record, read_json, write_json
from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.noting import launches_of
from benchmarks.gpu_check.sizes import dtypes_of, real_sizes
from prunekit.kernels.ops.utils.backend import Gpu, planning_for
from prunekit.kernels.ops.utils.dispatch import VARIABLE, find
from prunekit.kernels.ops.utils.launch import Launch
from prunekit.utils.files.sizes import folder_bytes

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = "prunekit-manifest.json"
# What a manifest must say as the machine does; the rest of it is for people.
COMPARED = (
    "triton",
    "triton_key",
    "assembler",
    "python",
    "machine",
    "capability",
    "table",
    "tokens",
    "sources",
    "models_noted",
)


def make_ready(arguments: argparse.Namespace) -> int:
    """Make the cache of these blocks (``make_cache``), or find it as it should be, or else compile what is missing on
    all cores. Returns an exit code."""
    folder = arguments.cache.resolve()
    gpu = Gpu(arguments.gpu, arguments.capability, arguments.multiprocessors)
    blocks = [name for name in arguments.blocks if BLOCKS[name].kernels]
    wanted = facts(gpu) | {"tokens": arguments.tokens, "blocks": blocks, "models": list(arguments.models)}
    wanted["models_noted"] = arguments.why_no_models is None
    moved = rewrite_paths(folder)
    if not arguments.make_cache:
        different = differences(read_manifest(folder), wanted)
        print(
            f"Kernels: Triton {wanted['triton']}, key {wanted['triton_key']}, assembler {wanted['assembler']}; "
            + (f"compiled beforehand in {folder}" if not different else f"{folder} does not hold them: {different}")
            + (f" ({moved} paths set)" if moved else ""),
            flush=True,
        )
        if not different:
            return 0
    begin = time.perf_counter()
    with planning_for(gpu):
        both, dtype = dtypes_of(torch.device("meta"))
    sizes = real_sizes(arguments.models, dtype, both, arguments.tokens, False)
    found, failed = launches_of(blocks, sizes, gpu, arguments.why_no_models)
    launches = found.launches
    noted = time.perf_counter() - begin
    done = compile_all(launches, folder, gpu.capability)
    took = time.perf_counter() - begin
    print(
        f"{len(launches)} kernels: {done['compiled']} compiled, {done['found']} were there, {done['stubs']} stubs "
        f"compiled, {len(failed) + len(done['failed'])} failed; {took:.0f} s ({noted:.0f} s to find which), "
        f"{folder_bytes(folder) / 2**20:.1f} MiB in {folder}",
        flush=True,
    )
    failed += done["failed"]
    for text in failed:
        print(f"  FAILED {text}", flush=True)
    if failed:
        return 1
    # Only a whole folder says that it is one; else what is missing is compiled where it is needed.
    write_json(folder / MANIFEST, _with_earlier(read_manifest(folder), {**wanted, "kernels": len(launches)}))
    return 0


def facts(gpu: Gpu) -> Record:
    """What keys depend on here."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas_version
    from triton.runtime.cache import triton_key

    capability = 10 * gpu.capability[0] + gpu.capability[1]
    table = find(gpu.name, os.environ.get(VARIABLE)) if gpu.name else None
    return {
        "triton": triton.__version__,
        "triton_key": hashlib.sha256(triton_key().encode()).hexdigest()[:16],
        "assembler": get_ptxas_version(capability).splitlines()[-1].strip(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "capability": list(gpu.capability),
        # What a table chooses are other kernels.
        "table": hashlib.sha256(table.path.read_bytes()).hexdigest()[:16] if table else None,
        "sources": _sources(),
    }


def _sources() -> str:
    """Of all files that kernels, and what decides on their arguments, are in."""
    found = hashlib.sha256()
    for folder in (ROOT / "kernels", ROOT / "benchmarks"):
        for file in sorted([*folder.rglob("*.py"), *folder.glob("tables/*.json"), *folder.glob("models/*.json")]):
            found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:16]


def read_manifest(folder: Path) -> Record | None:
    """What :func:`make_ready` wrote there; None where there is nothing of the kind."""
    try:
        found = read_json(folder / MANIFEST)
    except (OSError, json.JSONDecodeError):
        return None
    return found if isinstance(found, dict) else None


def differences(manifest: Record | None, wanted: Record) -> str:
    """Why a cache can't serve what is wanted, as the end of a sentence; empty where it can."""
    if manifest is None:
        return "there is none"
    found = [f"{name} was {manifest.get(name)}" for name in COMPARED if manifest.get(name) != wanted[name]]
    for what in ("blocks", "models"):
        missing = [name for name in wanted[what] if name not in manifest.get(what, [])]
        found += [f"{name} was not compiled" for name in missing]
    return ", ".join(found)


def _with_earlier(manifest: Record | None, made: Record) -> Record:
    """``made``, and the blocks that an earlier call has compiled of the same sources and models."""
    if manifest is None or any(manifest.get(name) != made[name] for name in (*COMPARED, "models")):
        return made
    return made | {"blocks": sorted({*manifest["blocks"], *made["blocks"]})}


def rewrite_paths(folder: Path) -> int:
    """Set the paths in ``folder``'s lists of files to where they lie now; returns how many were elsewhere. Triton keeps
    them whole, so that a folder that was copied would else lead back to where it was made."""
    changed = 0
    for file in folder.glob("*/__grp__*.json"):
        listed = read_json(file)
        here = {name: str(file.parent / Path(path).name) for name, path in listed["child_paths"].items()}
        if here != listed["child_paths"]:
            write_json(file, {**listed, "child_paths": here})
            changed += 1
    return changed


class Driver:
    """What Triton's launcher asks of a driver when it compiles and doesn't launch."""

    def __init__(self, capability: tuple[int, int]):
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Unloaded:
    """Stands for a compiled stub, which only a machine with a driver can load."""

    def __getattr__(self, name: str) -> Any:
        return None


_launches: list[Launch] = []


def compile_all(launches: Sequence[Launch], folder: Path, capability: tuple[int, int]) -> Record:
    """Compile every launch into ``folder`` through Triton's own launcher, on all cores, with the stubs in C that start
    them. CUDA is not touched, and this process can launch nothing afterwards. Returns how many were compiled and how
    many found, and what failed."""
    from triton.backends.nvidia.driver import CudaUtils
    from triton.runtime import build, driver

    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"TRITON_CACHE_DIR": str(folder), "TRITON_STORE_BINARY_ONLY": "1"}
    with tempfile.TemporaryDirectory() as stub:
        _stand_in_for_libcuda(Path(stub))
        driver.set_active(Driver(capability))
        build._load_module_from_path = lambda name, path: Unloaded()
        CudaUtils()
        # The children take the launches along: neither kernels nor tensors on meta can be sent.
        _launches[:] = launches
        with multiprocessing.get_context("fork").Pool() as pool:
            made = pool.map(_compile, range(len(launches)), chunksize=1)
    return {
        "compiled": sum(each.compiled for each in made),
        "found": sum(not each.compiled and not each.failed for each in made),
        "stubs": sum(each.stubs for each in made),
        "failed": [each.failed for each in made if each.failed],
    }


class Compiled(NamedTuple):
    """Of one launch: whether its kernel was compiled and not found, how many stubs were, and what went wrong."""

    compiled: bool
    stubs: int = 0
    failed: str = ""


def _compile(index: int) -> Compiled:
    from triton import knobs
    from triton.backends.nvidia.driver import CudaLauncher
    from triton.runtime import build

    launch = _launches[index]
    found: list[bool] = []
    stubs: list[str] = []
    make = build._build

    def counted(name: str, *arguments: Any, **options: Any) -> str:
        stubs.append(name)
        return make(name, *arguments, **options)

    knobs.compilation.listener = lambda *, cache_hit, **_: found.append(cache_hit)
    try:
        kernel = launch.kernel.warmup(grid=launch.grid, **launch.arguments, **launch.options)
    except Exception as error:
        why = f"{launch.kernel.__name__}: {type(error).__name__}: {str(error).strip()[:300]}"
        return Compiled(False, failed=why)
    build._build = counted
    try:
        # Triton 3.6 compiles a stub for each signature here; newer ones ask for the driver's, which is not there.
        CudaLauncher(kernel.src, kernel.metadata)
    except AttributeError:
        pass
    finally:
        build._build = make
    return Compiled(not (found and all(found)), len(stubs))


def _stand_in_for_libcuda(folder: Path) -> None:
    """An empty library to link against where there is no driver."""
    listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    if "libcuda.so.1" in listed:
        return
    source = folder / "nothing.c"
    source.write_text("")
    subprocess.run(["cc", "-shared", "-o", str(folder / "libcuda.so.1"), str(source)], check=True)
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
