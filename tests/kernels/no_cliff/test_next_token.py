from __future__ import annotations

import torch

from prunekit.kernels.ops.next_token import launches
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


@every_gpu
def test_a_vocabulary(arch: int) -> None:
    integers = meta(4, dtype=torch.int32)
    tokens, highest = meta(4, dtype=torch.int64), meta(4, 2, dtype=torch.float32)[:, 0]
    (launch,) = launches(meta(4, 128256), tokens, highest, integers, integers)
    check(launch, arch)
