"""Kernels in Triton's interpreter, on the CPU. `make test` runs this folder in a process of its own: with
TRITON_INTERPRET set, kernels can't be compiled, so the no-cliff gate can't share the process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from prunekit.kernels.ops.utils._triton import INTERPRETING
from prunekit.kernels.testing.interpreting import quicken
from prunekit.kernels.testing.tolerances import poisoned_memory

if INTERPRETING:
    quicken()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if not INTERPRETING and folder in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 in a process of its own: make test"))


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """Fresh memory holds NaN, so that an output element that no program wrote can't pass for a result."""
    with poisoned_memory():
        yield
