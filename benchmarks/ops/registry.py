"""Every op of prunekit.kernels by name, imported when asked for: one that fails doesn't take the others along."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

# op: the module that holds it
OPS = {
    "linear_decode": "ops.linear_decode",
    "mlp_decode": "ops.mlp.decode",
    "attention_decode": "ops.attention.decode",
    "qkv_rope": "ops.attention.qkv_rope",
    "rope_cache": "ops.attention.rope_cache",
    "rms_norm": "ops.rms_norm",
    "add_rms_norm": "ops.rms_norm",
    "rms_norm_add": "ops.rms_norm",
    "gated_act": "ops.gated_act",
    "mlp": "ops.mlp.op",
}


@lru_cache
def op(name: str) -> Callable[..., Any]:
    """The op ``name``."""
    return getattr(import_module(f"prunekit.kernels.{OPS[name]}"), name)


def reference(name: str) -> Callable[..., Any]:
    """What the op ``name`` must compute, in float64."""
    return getattr(import_module("prunekit.kernels.ops.reference"), name)
