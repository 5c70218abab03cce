"""Rewrites of a traced graph: reshapes that undo each other go, a sum and its norm become one operator."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_ir.passes import common

MICROSOFT = "com.microsoft"


def tidy(model: onnx_ir.Model) -> None:
    """Take out what the joints between transformers' code and single operators leave behind (heads are split off and
    put together again several times), and torch's notes of where in which file a node came from. No result changes by
    a bit."""
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain == "":
            _shorten(model, node)
    common.RemoveUnusedNodesPass()(model)
    common.ClearMetadataAndDocStringPass()(model)


def _shorten(model: Any, last: Any) -> None:
    """A reshape of a reshape reads what the first read; one to the shape that is there already goes."""
    made = last.outputs[0]
    start = last.inputs[0]
    while (first := start.producer()) is not None and first.op_type == "Reshape" and first.domain == "":
        start = first.inputs[0]
    if _same_shape(start, made) and made not in model.graph.outputs:
        onnx_ir.convenience.replace_all_uses_with(made, start)
        return
    target = last.inputs[1].const_value
    # A zero in a target means "as in the input", which must be the input that was meant.
    if target is None or 0 not in target.numpy():
        last.replace_input_with(0, start)


def _same_shape(one: Any, other: Any) -> bool:
    """True where both are known, symbols included, and equal."""
    if one.shape is None or other.shape is None:
        return False
    known = [isinstance(dim, int) or dim.value is not None for dim in one.shape]
    return all(known) and list(one.shape) == list(other.shape)


def add_before_norm(model: onnx_ir.Model) -> int:
    """Fuse x + y and the RMS norm of it into ONNX Runtime's SkipSimplifiedLayerNormalization. Returns how many.

    On SmolLM2 this saves some 2 % of a decode step, where the operators of opset 23 save 4 % of a prompt of 512 tokens:
    the rest is matrix products, the same in either graph.
    """
    count = 0
    nodes: list[Any] = list(model.graph)
    for norm in nodes:
        if norm.op_type != "RMSNormalization" or norm.domain != "":
            continue
        add = norm.inputs[0].producer()
        if add is None or add.op_type != "Add" or not _same_shape(add.inputs[0], add.inputs[1]):
            continue
        outputs = [_like(norm.outputs[0]), onnx_ir.Value(name=""), onnx_ir.Value(name=""), _like(add.outputs[0])]
        fused = onnx_ir.node(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, norm.inputs[1]],
            {"epsilon": norm.attributes["epsilon"].as_float()},
            domain=MICROSOFT,
            outputs=outputs,
        )
        model.graph.insert_before(add, fused)
        onnx_ir.convenience.replace_all_uses_with(norm.outputs[0], outputs[0])
        onnx_ir.convenience.replace_all_uses_with(add.outputs[0], outputs[3])
        count += 1
    if count:
        model.opset_imports[MICROSOFT] = 1
        common.RemoveUnusedNodesPass()(model)
    return count


def _like(value: Any) -> onnx_ir.Value:
    return onnx_ir.Value(name=f"{value.name}_fused", shape=value.shape, type=value.type)
