"""Allocations behind one registry; importing this package fills it."""

from prunekit.allocation import adapt, drop, greedy, optimal, uniform  # noqa: F401
from prunekit.allocation.base import ALLOCATION, Allocated, Problem, allocation

__all__ = ["ALLOCATION", "Allocated", "Problem", "allocation"]
