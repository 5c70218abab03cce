"""Importance methods behind one registry each; importing this package fills them."""

from prunekit.importance import activation, fisher, layers, magnitude, minitron, taylor  # noqa: F401
from prunekit.importance.base import IMPORTANCE, LAYER_IMPORTANCE
from prunekit.importance.run import score

__all__ = ["IMPORTANCE", "LAYER_IMPORTANCE", "score"]
