"""Every op at the shape of one irregular layer: Triton on a GPU, the PyTorch fallback elsewhere. `make bench`.

For comparing commits on one machine; how fast the kernels are beside others is benchmarks/gpu_check's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks.common.tensors import Data
from benchmarks.models.shapes import MODELS, pruned_shape
from benchmarks.ops.cases import Case, cases, sampled, unpruned_cases
from benchmarks.ops.workloads import Size
from prunekit.plan.shape import ModelShape
from prunekit.utils.machine import synchronize

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
MODEL = MODELS["llama-3.2-1b" if GPU else "smollm2-135m"]
DTYPE = torch.bfloat16 if GPU else torch.float32
DECODE, PREFILL = (1, 8), (512 if GPU else 64,)
CASES = [*cases(DECODE, PREFILL, context=1024), *unpruned_cases(DECODE, PREFILL)]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Steadier than several where other work keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache
def plan() -> ModelShape:
    return pruned_shape(MODEL.shape, 40)


@pytest.mark.benchmark(max_time=0.5, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_op(benchmark: Any, case: Case) -> None:
    shape = plan()
    layer = sampled(shape.layers, case.workload.kind, 1)[0]
    fixed = (shape.hidden_size, shape.head_dim, shape.vocab_size)
    size = Size(*fixed, layer, case.rows, case.context, shape.qkv_bias, MODEL.eps)
    workload = case.workload(size, Data(DEVICE, DTYPE))
    benchmark.extra_info |= {"model": MODEL.name, "layer": str(layer), "device": DEVICE.type, "dtype": str(DTYPE)}

    def run() -> None:
        workload.ours()
        synchronize(DEVICE)

    run()
    benchmark(run)
