"""What can be told of an ONNX graph without TensorRT: its operators, and every tensor's shape over a whole profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.utils.quiet import reason

# Operators that the ONNX parser of TensorRT 10 imports for the types used here (float32, float16, int64, bool), from
# docs/operators.md of onnx/onnx-tensorrt at 10.1. The axes of ReduceMean, Slice, Squeeze and Unsqueeze must be
# constants. Nothing else may be in a graph; what TensorRT supports besides these is left out until a graph needs it.
# fmt: off
OPERATORS = frozenset((
    "Abs", "Add", "And", "Cast", "Concat", "Constant", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp",
    "Expand", "Gather", "GatherND", "Gelu", "Gemm", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual",
    "MatMul", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMean",
    "Reshape", "Shape", "Sigmoid", "Sin", "Slice", "Softmax", "Sqrt", "Squeeze", "Sub", "Tanh", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Where",
))
# fmt: on
_CONSTANT_AXES = {"ReduceMax": 1, "ReduceMean": 1, "Slice": 3, "Squeeze": 1, "Unsqueeze": 1}
# Larger tensors are weights, whose values no shape depends on.
_SMALL = 1 << 17

Shape = tuple[int, ...]


def check_operators(model: Any) -> None:
    """Raises PrunekitError where ``model`` (an onnx.ModelProto) holds what TensorRT's parser does not import."""
    constants = {each.name for each in model.graph.initializer}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
            raise PrunekitError(f"The graph holds the operator {node.op_type}, which TensorRT is not known to import.")
        if node.op_type == "Constant":
            constants.update(node.output)
        place = _CONSTANT_AXES.get(node.op_type)
        if place is not None and len(node.input) > place and node.input[place] not in constants | {""}:
            raise PrunekitError(f"{node.op_type} {node.name} has axes that are computed, which TensorRT can't import.")


class Shapes:
    """Infers the shape of every tensor of ``model`` (an onnx.ModelProto, which loses its weights) for given inputs."""

    def __init__(self, model: Any):
        import onnx

        self._model = model
        graph = model.graph
        del graph.value_info[:]
        for tensor in list(graph.initializer):
            if _elements(tensor.dims) > _SMALL or tensor.external_data:
                graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
                graph.initializer.remove(tensor)
        for output in graph.output:
            output.type.tensor_type.ClearField("shape")

    def infer(self, given: Mapping[str, Sequence[int]]) -> dict[str, Shape]:
        """Shapes of all tensors, where the inputs have the shapes ``given``.

        Raises PrunekitError where two shapes in the graph contradict each other, or one can't be told.
        """
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for each in model.graph.input:
            if each.name not in given:
                continue
            axes = each.type.tensor_type.shape.dim
            for axis, size in zip(axes, given[each.name], strict=True):
                if axis.HasField("dim_value") and axis.dim_value != size:
                    raise PrunekitError(f"{each.name} takes {axis.dim_value} where the profile has {size}.")
                axis.dim_value = size
        # Shapes that are computed become numbers one after another: each may be what the next one is made of.
        while True:
            try:
                inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
            except onnx.shape_inference.InferenceError as error:
                raise PrunekitError(f"The graph contradicts itself at {_say(given)}: {reason(error)}.") from None
            known = dict(_shapes((*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)))
            if not _fold(model.graph, model.opset_import, known):
                break
        known |= {each.name: tuple(each.dims) for each in model.graph.initializer}
        for node in model.graph.node:
            for name in node.output:
                if name not in known:
                    raise PrunekitError(f"The shape of {name} ({node.op_type}) can't be told at {_say(given)}.")
        return known


def _say(given: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in given.items() if not name.startswith("past"))


def _elements(dims: Sequence[int]) -> int:
    count = 1
    for each in dims:
        count *= each
    return count


def _shapes(values: Sequence[Any]) -> Iterator[tuple[str, Shape]]:
    for value in values:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(axis.HasField("dim_value") for axis in kind.shape.dim):
            yield value.name, tuple(axis.dim_value for axis in kind.shape.dim)


def _fold(graph: Any, opsets: Any, known: Mapping[str, Shape]) -> bool:
    """Replace nodes that compute whole numbers from shapes by their results. True where there was one."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    values = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    folded = []
    for node in graph.node:
        if node.op_type == "Shape":
            if node.input[0] not in known:
                continue
            dims = np.array(known[node.input[0]], dtype=np.int64)
            first = next((each.i for each in node.attribute if each.name == "start"), 0)
            last = next((each.i for each in node.attribute if each.name == "end"), None)
            results: list[Any] = [dims[first:last]]
        elif node.input and all(name in values and values[name].dtype == np.int64 for name in node.input if name):
            feeds = {name: values[name] for name in node.input if name}
            alone = helper.make_graph(
                [node],
                "node",
                [
                    helper.make_tensor_value_info(name, TensorProto.INT64, list(value.shape))
                    for name, value in feeds.items()
                ],
                [helper.make_empty_tensor_value_info(name) for name in node.output],
            )
            results = list(ReferenceEvaluator(helper.make_model(alone, opset_imports=opsets)).run(None, feeds))
            if any(np.size(each) > _SMALL for each in results):
                continue
        else:
            continue
        folded.append(node)
        for name, result in zip(node.output, results, strict=True):
            values[name] = np.asarray(result)
            graph.initializer.append(numpy_helper.from_array(values[name], name))
    for node in folded:
        graph.node.remove(node)
    return bool(folded)
