"""Every op at irregular widths: Triton on a GPU, the PyTorch fallback elsewhere. `make bench`.

For comparing commits on one machine; how fast the kernels are beside others is benchmarks/gpu_check's matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks.common.tensors import Data
from benchmarks.ops.attention_checks import attention_checks
from benchmarks.ops.checks import NARROW, REAL, Check, ffn_checks
from benchmarks.ops.registry import op
from prunekit.kernels.ops.utils.dispatch import choosing
from prunekit.utils.machine import synchronize

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32


def cases() -> dict[str, Check]:
    """The first check of every op without and, where it has one, with more rows."""
    data, sizes = Data(DEVICE, DTYPE), REAL if GPU else NARROW
    found: dict[str, Check] = {}
    for make in (ffn_checks, attention_checks):
        for check in make(data, sizes):
            found.setdefault(f"{check.op} {check.label.split(',')[0]}", check)
    return found


CASES = cases()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Steadier than several where other work keeps a core busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.benchmark(max_time=0.5, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("name", CASES)
def test_op(benchmark: Any, name: str) -> None:
    check = CASES[name]
    function, arguments = op(check.op), check.arguments()
    benchmark.extra_info |= {"case": check.label, "device": DEVICE.type, "dtype": str(DTYPE)}

    def run() -> None:
        with choosing(**dict(check.choices)):
            function(**arguments)
        synchronize(DEVICE)

    run()
    benchmark(run)
