"""Which kernels a piece of work starts, found without a GPU: on ``meta`` tensors, launches are noted and not made."""

from __future__ import annotations

import hashlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch

from prunekit.kernels.ops.utils.backend import Gpu, planning_for, using
from prunekit.kernels.ops.utils.launch import Launch


class Recorded:
    """Launches by what Triton compiles them by, each once."""

    def __init__(self) -> None:
        self._found: dict[Any, Launch] = {}

    def add(self, launch: Launch) -> None:
        self._found.setdefault(signature(launch), launch)

    @property
    def launches(self) -> list[Launch]:
        return list(self._found.values())

    @property
    def digests(self) -> list[str]:
        """Short names of their signatures, the same in every process."""
        return sorted(hashlib.sha256(repr(found).encode()).hexdigest()[:16] for found in self._found)


def signature(launch: Launch) -> tuple[Any, ...]:
    """The kernel, its arguments as Triton's launcher tells them apart (types, alignment, ones, constants), and its
    options: of equal ones the first alone is compiled."""
    # Interpreted kernels have no list of their own.
    parameters = inspect.signature(launch.kernel.fn).parameters
    constants = {name for name, parameter in parameters.items() if "constexpr" in str(parameter.annotation)}
    told = []
    for name, value in sorted(launch.arguments.items()):
        if name in constants or value is None or isinstance(value, bool):
            told.append((name, value))
        elif isinstance(value, torch.Tensor):
            told.append((name, (value.dtype, value.data_ptr() % 16 == 0)))
        elif isinstance(value, int):
            told.append((name, value if value == 1 else (abs(value) >= 2**31, value % 16 == 0)))
        else:
            told.append((name, type(value).__name__))
    return launch.kernel.__name__, tuple(told), tuple(sorted(launch.options.items()))


@contextmanager
def recording(gpu: Gpu) -> Iterator[Recorded]:
    """Within the block ops note their launches as they are planned for ``gpu``, and leave results as they find them.

    For work on ``meta`` tensors, in which an op would else be replaced by the shape of its result.
    """
    found = Recorded()
    ops = _custom_ops()
    shapes = {op: op._abstract_fn for op in ops}
    for op in ops:
        op._abstract_fn = op._init_fn
    try:
        with _started_by(found.add), planning_for(gpu), using("triton"):
            yield found
    finally:
        for op, shape in shapes.items():
            op._abstract_fn = shape


@contextmanager
def listening() -> Iterator[Recorded]:
    """Within the block launches are made, and noted too."""
    found = Recorded()
    run = Launch.run

    def noted(launch: Launch) -> None:
        found.add(launch)
        run(launch)

    with _started_by(noted):
        yield found


@contextmanager
def _started_by(start: Callable[[Launch], None]) -> Iterator[None]:
    """Within the block ``start`` is called with each launch that would be made."""
    run = Launch.run
    Launch.run = lambda self: start(self)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Launch.run = run  # type: ignore[method-assign]


def _custom_ops() -> list[Any]:
    """Every op of prunekit. PyTorch has no other list of them."""
    from torch._library.custom_ops import OPDEFS

    import prunekit.kernels.ops as ops

    for module in pkgutil.walk_packages(ops.__path__, f"{ops.__name__}."):
        import_module(module.name)
    return [op for name, op in OPDEFS.items() if name.startswith("prunekit::")]
