"""Kernels in Triton's interpreter, on the CPU. `make test` runs this folder in a process of its own: with
TRITON_INTERPRET set, kernels can't be compiled, so the no-cliff gate can't share the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit.kernels._triton import INTERPRETING


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if not INTERPRETING and folder in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs TRITON_INTERPRET=1 in a process of its own: make test"))


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an output element that no program wrote can't pass for a result."""

    def poisoned(make: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() and not tensor.is_meta else tensor

        return wrapped

    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
