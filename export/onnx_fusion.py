"""Rewrites of a traced graph: reshapes that undo each other, sums in front of norms."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnx_ir.passes import common


def tidy(model: onnx_ir.Model) -> None:
    """Take out what the joints between transformers' code and single operators leave behind. Results stay the same to
    the bit."""
    for node in list(model.graph):
        if node.op_type == "Reshape" and node.domain == "":
            _shorten(model, node)
    common.RemoveUnusedNodesPass()(model)


def _shorten(model: Any, last: Any) -> None:
    """A reshape of a reshape reads what the first read; one to the shape that is there already goes."""
    made = last.outputs[0]
    while (first := last.inputs[0].producer()) is not None and first.op_type == "Reshape":
        # Zeros in a target mean "as in the input", which would be another one.
        target = last.inputs[1].const_value
        if target is not None and 0 in target.numpy():
            if not _same(first.inputs[0].shape, made.shape):
                return
        last.replace_input_with(0, first.inputs[0])
    if _same(last.inputs[0].shape, made.shape) and made not in model.graph.outputs:
        onnx_ir.convenience.replace_all_uses_with(made, last.inputs[0])


def _same(one: Any, other: Any) -> bool:
    return (
        one is not None
        and other is not None
        and list(one) == list(other)
        and None not in [d.value if hasattr(d, "value") else d for d in one]
    )


def add_before_norm(model: onnx_ir.Model) -> int:
    """x + y and its norm become one SkipSimplifiedLayerNormalization, an operator of ONNX Runtime."""
    count = 0
    for norm in list(model.graph):
        if norm.op_type != "RMSNormalization":
            continue
        add = norm.inputs[0].producer()
        if add is None or add.op_type != "Add" or not _same(add.inputs[0].shape, add.inputs[1].shape):
            continue
        node = onnx_ir.node(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, norm.inputs[1]],
            domain="com.microsoft",
            num_outputs=4,
            attributes={"epsilon": norm.attributes["epsilon"].as_float()},
            version=1,
        )
        for new, old in ((node.outputs[0], norm.outputs[0]), (node.outputs[3], add.outputs[0])):
            new.name, new.type, new.shape = old.name + "_", old.type, old.shape
        node.outputs[1].name = node.outputs[2].name = ""
        model.graph.insert_before(add, node)
        onnx_ir.convenience.replace_all_uses_with(norm.outputs[0], node.outputs[0])
        onnx_ir.convenience.replace_all_uses_with(add.outputs[0], node.outputs[3])
        count += 1
    model.opset_imports["com.microsoft"] = 1
    common.RemoveUnusedNodesPass()(model)
    return count
