"""What the device can do at best, measured in the same run as everything that is compared with it."""

from __future__ import annotations

import torch

from benchmarks.common.timer import spread
from prunekit.kernels.tuning.measure import interleaved


def ceilings(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> dict[str, object]:
    """Bandwidth of a large copy (bytes read and written) and of a sum that only reads, and a large matrix product."""
    size = 1 << 16 if tiny else 1 << 30
    edge = 64 if tiny else 8192
    source = torch.empty(size // 4, dtype=torch.int32, device=device).random_(1 << 30)
    target = torch.empty_like(source)
    floats = torch.rand(size // 4, device=device)
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    arms = {
        "copy": lambda: target.copy_(source),
        "read": lambda: floats.sum(),
        "matmul": lambda: torch.mm(left, right, out=out),
    }
    for call in arms.values():
        call()
    times = {name: spread(values) for name, values in interleaved(arms, device, rounds=3 if tiny else 30).items()}
    work = {"copy": 2 * size, "read": size, "matmul": 2 * edge**3}
    rates = {name: work[name] / times[name]["median_us"] / 1e3 for name in arms}  # 1e9 a second
    return {
        "copy_gbps": rates["copy"],
        "read_gbps": rates["read"],
        "matmul_tflops": rates["matmul"] / 1e3,
        "dtype": str(dtype).removeprefix("torch."),
        "copy_bytes": 2 * size,
        "matmul_edge": edge,
        "times": times,
    }
