"""What an ONNX graph of unknown origin may hold: operators that ONNX Runtime has, and weights of its own folder."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.target import runtime_errors
from prunekit.utils.files.listed_folder import is_plain

_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
# Compiled code of a device, and calls into Python.
_CODE = ("EPContext", "PythonOp", "PythonOpGrad", "PyOp")
# As often as the graph says. No export of a decoder repeats anything inside its graph.
_LOOPS = ("Loop", "Scan", "SequenceMap", "BeamSearch", "GreedySearch", "Sampling", "WhisperBeamSearch")
# protobuf can't hold more.
_MOST_BYTES = 2**31 - 1


def check_onnx(path: Path, folder: Path, files: Collection[str]) -> None:
    """Raises PrunekitError where the graph in ``path`` is none, needs operators that a library would have to bring, or
    keeps weights elsewhere than in ``files``, which are names of files in ``folder`` that belong there."""
    import onnx

    if path.stat().st_size > _MOST_BYTES:
        raise PrunekitError(f"{path} is larger than an ONNX file can be; export the model again.")
    with runtime_errors(f"{path} is no ONNX graph"):
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    own = {function.domain for function in model.functions}
    for node in _nodes(model):
        if node.op_type in _LOOPS:
            raise PrunekitError(
                f"{path} has the operator {node.op_type}, which may repeat its work without end; export the model "
                "again."
            )
        if node.domain not in (*_DOMAINS, *own) or node.op_type in _CODE:
            raise PrunekitError(
                f"{path} has the operator {f'{node.domain}::{node.op_type}'!r}, which needs a library or is code; "
                "export the model again."
            )
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            _check_place(path, tensor, folder, files)


def _check_place(path: Path, tensor: Any, folder: Path, files: Collection[str]) -> None:
    facts = {entry.key: entry.value for entry in tensor.external_data}
    where = facts.get("location", "")
    plain = len(facts) == len(tensor.external_data) and is_plain(where)
    if not plain or (path.parent / where).relative_to(folder).as_posix() not in files:
        raise PrunekitError(
            f"{path} looks for weights in {where!r}, which is no listed file of its folder; export the model again."
        )
    begin, length = (facts.get(name, "0") for name in ("offset", "length"))
    most = (path.parent / where).stat().st_size
    if not all(each.isascii() and each.isdigit() and len(each) < 20 for each in (begin, length)):
        raise PrunekitError(f"{path} has a weight at no place of {where}; export the model again.")
    if int(begin) + int(length) > most:
        raise PrunekitError(f"{path} has a weight beyond the end of {where}; copy the folder again.")


def _graphs(model: Any) -> Iterator[Any]:
    """The main graph, the functions, and every graph inside a node."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    waiting.append(attribute.g)
                waiting.extend(attribute.graphs)


def _nodes(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        # A function has none of its own.
        yield from getattr(graph, "initializer", ())
        sparse = [*getattr(graph, "sparse_initializer", ())]
        held = [attribute for node in graph.node for attribute in node.attribute]
        held += getattr(graph, "attribute_proto", ())
        for attribute in held:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            sparse += attribute.sparse_tensors
        for each in sparse:
            yield from (each.values, each.indices)
