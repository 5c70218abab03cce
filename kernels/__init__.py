"""Triton kernels, their references, and a decode runtime that uses them; imported as ``prunekit.kernels``.

model = prunekit.kernels.optimize(model)
made = prunekit.kernels.generate(model, prompts, max_new_tokens=128)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.kernels.runtime.engine import Runtime
    from prunekit.kernels.runtime.generate import Generated, generate, stream
    from prunekit.kernels.runtime.optimize import Report, optimize, report, restore
    from prunekit.kernels.runtime.sampling import Sampling

__all__ = [
    "Generated",
    "Report",
    "Runtime",
    "Sampling",
    "generate",
    "optimize",
    "report",
    "restore",
    "stream",
]
_HOME = {
    "Generated": "runtime.generate",
    "generate": "runtime.generate",
    "stream": "runtime.generate",
    "Report": "runtime.optimize",
    "optimize": "runtime.optimize",
    "report": "runtime.optimize",
    "restore": "runtime.optimize",
    "Runtime": "runtime.engine",
    "Sampling": "runtime.sampling",
}


def __getattr__(name: str) -> Any:
    """Ops and layout can then be used, and checked on a GPU, without what only the runtime needs (transformers)."""
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
