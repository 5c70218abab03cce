"""Triton kernels, their references, and a decode runtime that uses them; imported as ``prunekit.kernels``.

model = prunekit.kernels.optimize(model)
made = prunekit.kernels.generate(model, prompts, max_new_tokens=128)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.kernels.generation import Generated, generate, stream
    from prunekit.kernels.optimization import Report, optimize, report, restore
    from prunekit.kernels.runtime import Runtime
    from prunekit.kernels.sampling import Sampling

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
    "Generated": "generation",
    "generate": "generation",
    "stream": "generation",
    "Report": "optimization",
    "optimize": "optimization",
    "report": "optimization",
    "restore": "optimization",
    "Runtime": "runtime",
    "Sampling": "sampling",
}


def __getattr__(name: str) -> Any:
    """Ops and layout can then be used, and checked on a GPU, without what only the runtime needs (transformers)."""
    if name not in _HOME:
        raise AttributeError(name)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
