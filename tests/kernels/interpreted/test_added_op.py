"""What docs/architecture.md says of adding an op is enough: one is written in tests/support/added_op.py."""

from __future__ import annotations

import pytest
import torch

from prunekit.kernels.ops.utils import dispatch
from prunekit.kernels.ops.utils.backend import using
from prunekit.kernels.ops.utils.launch import run
from prunekit.kernels.ops.utils.layout import padded
from tests.support import added_op
from tests.support.added_op import channel_scale, launches, reference
from tests.support.close import WIDTHS, assert_close
from tests.support.guard import assert_guard_intact, guarded


@pytest.fixture(autouse=True)
def _listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dispatch.OPS, "channel_scale", added_op.OP)


def case(width: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(width)
    return guarded(torch.randn(3, width, generator=g).to(dtype)), guarded(torch.randn(width, generator=g))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize("width", WIDTHS)
def test_reference(width: int, dtype: torch.dtype) -> None:
    for each in sorted({width, padded(width)}):
        x, scale = case(each, dtype)
        assert_close(channel_scale(x, scale), reference(x, scale))


def test_nothing_is_written_around() -> None:
    x, scale = case(37)
    out = guarded(torch.empty(3, 37))
    run(launches(x, scale, out))
    assert_guard_intact(out)


def test_fallback() -> None:
    x, scale = case(37)
    with using("torch"):
        assert_close(channel_scale(x, scale), reference(x, scale))


def test_opcheck() -> None:
    torch.library.opcheck(channel_scale, case(32))
