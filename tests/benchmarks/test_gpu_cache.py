"""Kernels for a GPU that isn't there: which ones blocks start, and that what was compiled is found elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_check.cache import COMPARED, MANIFEST, differences, rewrite_paths
from benchmarks.gpu_check.noting import launches_of
from benchmarks.gpu_check.sizes import dtypes_of, real_sizes
from prunekit.kernels.ops.linear_decode import launches, linear_decode
from prunekit.kernels.ops.utils import dispatch
from prunekit.kernels.ops.utils.backend import Gpu, multiprocessors, planning_for, why_not_triton
from prunekit.kernels.ops.utils.dispatch import can_overlap
from prunekit.kernels.testing.recording import recording, signature

pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]
META = torch.device("meta")
H200 = Gpu("NVIDIA H200", (9, 0), 132)


def weights(rows: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty(rows, k, dtype=torch.bfloat16, device=META),
        torch.empty(n, k, dtype=torch.bfloat16, device=META),
    )


def test_launches_are_planned_for_a_gpu_that_is_not_there() -> None:
    assert why_not_triton(META, torch.bfloat16) is not None and not can_overlap(META)
    with planning_for(Gpu("NVIDIA A10", (8, 6), 72)):
        assert why_not_triton(META, torch.bfloat16, dot=True) is None and not can_overlap(META)
        assert multiprocessors(META) == 72
    with planning_for(H200):
        assert can_overlap(META)
        (launch,) = launches(*weights(1, 2048, 2048), torch.empty(1, 2048, device=META))
        assert launch.overlap and launch.arguments["PDL"] is True


def test_ops_on_tensors_without_memory_are_noted() -> None:
    x, weight = weights(1, 2048, 2048)
    with recording(H200) as found:
        assert linear_decode(x, weight).shape == (1, 2048)
        linear_decode(*weights(1, 2048, 2048))
        linear_decode(*weights(1, 2049, 2048))
        linear_decode(*weights(3, 2048, 2048))
    assert [launch.args["rows"] for launch in found.launches] == [1, 1, 3]
    # Afterwards all is as before.
    assert linear_decode(x, weight).is_meta and len(found.launches) == 3


def test_what_makes_another_kernel_makes_another_signature() -> None:
    out = torch.empty(1, 4096, device=META)

    def told(x: torch.Tensor, weight: torch.Tensor) -> object:
        return signature(launches(x, weight, out)[0])

    base = told(*weights(1, 2048, 2048))
    assert base == told(*weights(1, 4096, 2048)), "n is no constant"
    assert base != told(*weights(1, 2047, 2048)), "16 does not divide n"
    assert base != told(*weights(1, 2048, 1024)), "another tile"
    x, weight = weights(2, 2048, 2048)
    shifted = torch.empty(2 * 2048 + 1, dtype=torch.bfloat16, device=META)[1:].view(2, 2048)
    assert signature(launches(x, weight, out)[0]) != signature(launches(shifted, weight, out)[0]), "not aligned"


def test_a_table_decides_on_tiles_splits_and_overlap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, read, and taken by the launches of the GPU that it was measured on."""
    sizes = {"n": 2048, "k": 2048}
    entries = [{"op": "linear_decode_tile", **sizes, "choice": "8x2048x8"}, {"op": "overlap", "choice": "off"}]
    file = tmp_path / "t.json"
    file.write_text(json.dumps({"schema": dispatch.SCHEMA, "gpu": H200.name, "provenance": {}, "entries": entries}))
    monkeypatch.setenv(dispatch.VARIABLE, str(file))
    dispatch.reload()
    x, weight = weights(1, 2048, 2048)
    out = torch.empty(1, 2048, device=META)
    with planning_for(H200):
        (launch,) = launches(x, weight, out)
        assert (launch.args["BLOCK_N"], launch.args["BLOCK_K"], launch.num_warps) == (8, 2048, 8)
        assert launch.grid == (256,) and not launch.overlap
        with dispatch.choosing({("linear_decode_tile", (2048, 2048)): "4x1024x4"}):
            assert launches(x, weight, out)[0].args["BLOCK_K"] == 1024
            # Elsewhere the table goes on counting, and where it has nothing near, the rule.
            assert launches(*weights(1, 4096, 2048), out)[0].num_warps == 8
            assert launches(*weights(1, 2048, 8192), out)[0].num_warps == 4
    dispatch.reload()


def run(*arguments: object, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_cache_that_was_moved_is_found_in_a_fresh_process(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    made = run("attention", "--make-cache", "--cache", there)
    count = int(made.split(" kernels: ")[0].split()[-1])
    assert count > 10 and f"{count} kernels: {count} compiled" in made
    shutil.move(there, here)
    ready = run("attention", "--warm", "--cache", here)
    assert "compiled beforehand" in ready and "paths set" in ready and "kernels: " not in ready
    again = run("attention", "--make-cache", "--cache", here)
    assert f"{count} kernels: 0 compiled, {count} were there, 0 stubs compiled, 0 failed" in again
    assert not there.exists()
    # For what the manifest doesn't vouch, everything is looked for, and what is missing compiled.
    manifest = json.loads((here / MANIFEST).read_text())
    assert manifest["kernels"] == count and manifest["blocks"] == ["attention"]
    (here / MANIFEST).write_text(json.dumps(manifest | {"triton_key": "another"}))
    late = run("attention", "--warm", "--cache", here)
    assert "triton_key was another" in late and f"{count} kernels: 0 compiled" in late


def test_what_a_cache_must_agree_in() -> None:
    wanted = {**dict.fromkeys(COMPARED, "x"), "blocks": ["tiles"], "models": ["a"]}
    assert differences({**wanted, "blocks": ["tiles", "launch"], "kernels": 3}, wanted) == ""
    assert differences(None, wanted) == "there is none"
    old = {**wanted, "sources": "y", "blocks": []}
    assert differences(old, wanted) == "sources was y, tiles was not compiled"
    assert differences(wanted, {**wanted, "models": ["a", "b"]}) == "b was not compiled"


def test_paths_are_set_to_where_files_lie(tmp_path: Path) -> None:
    group = tmp_path / "KEY" / "__grp__kernel.json"
    group.parent.mkdir()
    group.write_text(json.dumps({"child_paths": {"kernel.cubin": "/elsewhere/KEY/kernel.cubin"}}))
    assert rewrite_paths(tmp_path) == 1 and rewrite_paths(tmp_path) == 0
    assert json.loads(group.read_text()) == {"child_paths": {"kernel.cubin": str(group.parent / "kernel.cubin")}}


NOTED = """
import sys
sys.path.insert(0, sys.argv[1])
from benchmarks.gpu_check.__main__ import load_tree
load_tree("benchmarks", "prunekit")
from benchmarks.gpu_check.noting import launches_of
from benchmarks.gpu_check.sizes import tiny_sizes
from prunekit.kernels.ops.utils.backend import Gpu
for block in sys.argv[2:]:
    found, failed = launches_of([block], tiny_sizes(False), Gpu("", (8, 0)), None)
    assert not failed, failed
    print(block, *found.digests)
"""


def noted(*blocks: str) -> dict[str, list[str]]:
    """What a rehearsal of these blocks would start, without running it."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", NOTED, str(ROOT), *blocks], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}


def test_kernels_of_a_step_are_those_of_its_graph() -> None:
    """In a graph launches overlap where the GPU can, and are other kernels than those that wait."""
    pytest.importorskip("transformers")
    with planning_for(H200):
        both, dtype = dtypes_of(META)
    sizes = real_sizes(("smollm2-135m",), dtype, both, 32, False)
    # A few of its layers start the kernels of all.
    (whole,) = sizes.models
    few = replace(whole, shape=whole.shape.with_layers(whole.shape.layers[:4]))
    found, failed = launches_of(["headline"], replace(sizes, models=(few,)), H200, None)
    assert not failed
    overlapping = {launch.kernel.__name__ for launch in found.launches if launch.overlap}
    assert {"_qkv_rope_kernel", "_gate_up_kernel", "_attention_decode_kernel", "_linear_decode_kernel"} <= overlapping
