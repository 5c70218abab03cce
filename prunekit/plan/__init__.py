"""What a pruned model will be, as data; no torch."""

from prunekit.plan.plan import PLAN_VERSION, LayerKeep, Plan, compose, shapes_in_place, whole_plan
from prunekit.utils.ranges import decode_ranges, encode_ranges

__all__ = [
    "PLAN_VERSION",
    "LayerKeep",
    "Plan",
    "compose",
    "decode_ranges",
    "encode_ranges",
    "shapes_in_place",
    "whole_plan",
]
