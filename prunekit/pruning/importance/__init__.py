"""Importance methods behind one registry each; importing this package fills them."""

from prunekit.pruning.importance import activation_size, fisher, input_moments, layers, magnitude, taylor  # noqa: F401
from prunekit.pruning.importance.base import IMPORTANCE, LAYER_IMPORTANCE
from prunekit.pruning.importance.scoring import score

__all__ = ["IMPORTANCE", "LAYER_IMPORTANCE", "score"]
