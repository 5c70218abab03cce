"""Allocations behind one registry; importing this package fills it."""

from prunekit.pruning.allocation import adapt, drop, global_sort, optimal, uniform  # noqa: F401
from prunekit.pruning.allocation.base import ALLOCATION, Allocated, Problem, allocation

__all__ = ["ALLOCATION", "Allocated", "Problem", "allocation"]
