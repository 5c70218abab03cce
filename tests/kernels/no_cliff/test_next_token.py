from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.next_token import launches
from tests.support.gate import check, every_gpu, meta, needs_compiler

pytestmark = needs_compiler


@every_gpu
@pytest.mark.parametrize("scaled", (False, True))
def test_a_vocabulary(scaled: bool, arch: int) -> None:
    integers = meta(4, dtype=torch.int32)
    tokens, highest = meta(4, dtype=torch.int64), meta(4, 2, dtype=torch.float32)[:, 0]
    table, hidden = meta(128256, 2048), meta(4, 2048)
    scale = meta(1, dtype=torch.float32) if scaled else None
    (launch,) = launches(meta(4, 128256), tokens, highest, integers, integers, table, hidden, scale)
    check(launch, arch)
