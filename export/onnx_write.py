"""From a checkpoint to model.onnx: trace, name the axes, store every tensor once."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunekit.errors import PrunekitError
from prunekit.export.base import Job, runtime_errors
from prunekit.hf import quiet
from prunekit.source import load_model

if TYPE_CHECKING:
    from prunekit.export.onnx_config import PrunedOnnxConfig

MODEL = "model.onnx"
DATA = "model.onnx_data"
# A protobuf message ends at 2 GiB; what a graph needs besides weights is far below the difference.
EXTERNAL_FROM = 1800 * 2**20
Logits = Literal["optional", "required", "all"]
# The fused operators came with 23; a plain graph asks for no more than older runtimes have.
_OPSETS = {True: 20, False: 23}
_DTYPES = {"fp32": "float32", "fp16": "float16"}


def export_onnx(
    job: Job,
    folder: Path,
    *,
    dtype: str | None = None,
    plain: bool = False,
    logits: Logits = "optional",
    external_from: int = EXTERNAL_FROM,
) -> Path:
    """Write ``folder``/model.onnx: the model with its KV cache, batch and lengths free. Returns its path.

    Inputs input_ids, attention_mask, position_ids (int64) and past_key_values.N.key/.value, outputs logits and
    present.N.key/.value, named and shaped as optimum's. ``dtype`` is fp32 or fp16 (default: the job's); ``plain`` keeps
    to operators of the ONNX standard, for runtimes other than ONNX Runtime. A further input num_logits_to_keep (int64
    []) says of how many last positions logits are computed, 0 for all: with ``logits`` "optional" it may be left out
    (0 then; ONNX Runtime's way), with "required" it is an input like others, with "all" there is none. Weights of more
    than ``external_from`` bytes go to model.onnx_data beside the graph.
    Raises PrunekitError where the model can't be traced.
    """
    import onnx_ir

    from prunekit.export.onnx_config import PrunedOnnxConfig
    from prunekit.export.onnx_fusion import add_before_norm, tidy

    dtype = dtype or job.dtype
    if dtype not in _DTYPES:
        raise PrunekitError(f"ONNX is written in fp32 or fp16, not {dtype}.")
    config = PrunedOnnxConfig.of(job.source, dtype)
    model = load_model(job.source, dtype=_DTYPES[dtype], device="cpu")
    path = folder / MODEL
    with runtime_errors(f"{job.source.name} can't be written as ONNX"):
        made = _traced(job, config, model, plain, logits)
        _name_axes(made, config)
        tidy(made)
        if not plain:
            add_before_norm(made)
        if logits == "optional":
            _give_default(made)
        weights = sum(value.const_value.nbytes for value in made.graph.initializers.values())
        onnx_ir.save(made, path, external_data=DATA if weights > external_from else None)
    return path


def _traced(job: Job, config: PrunedOnnxConfig, model: Any, plain: bool, logits: Logits) -> Any:
    """The model as an onnx_ir.Model with the names of ``config``."""
    import torch

    from prunekit.export.onnx_config import KEEP
    from prunekit.export.onnx_graph import OnnxForward

    dummies = config.generate_dummy_inputs(batch_size=2, sequence_length=3)
    names = list(dummies)
    names.insert(3, KEEP)
    dummies[KEEP] = None if logits == "all" else torch.tensor(0)
    free = torch.export.Dim.DYNAMIC
    axes = [dict.fromkeys(config.inputs.get(name, ()), free) or None for name in names]
    with _silent():
        program = torch.onnx.export(
            OnnxForward(model, fused=not plain, norm_offset=job.source.family.norm_offset).eval(),
            tuple(dummies[name] for name in names),
            dynamo=True,
            dynamic_shapes=(*axes[:4], tuple(axes[4:])),
            input_names=[name for name in names if dummies[name] is not None],
            output_names=list(config.outputs),
            opset_version=_OPSETS[plain],
            verbose=False,
        )
    assert program is not None
    return program.model


def _name_axes(made: Any, config: PrunedOnnxConfig) -> None:
    """Give the axes optimum's names, in place of torch's s27 and s70; the same symbol means the same number."""
    import onnx_ir

    from prunekit.export.onnx_config import KEEP

    graph = made.graph
    names = {
        str(value.shape[axis]): name
        for value in graph.inputs
        for axis, name in config.inputs.get(value.name, {}).items()
    }
    symbol = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for value in (*graph.inputs, *(each for node in graph for each in node.outputs)):
        if value.shape is not None:
            named = [symbol.sub(lambda found: names[found[0]], str(dim)) for dim in value.shape]
            value.shape = onnx_ir.Shape([int(name) if name.isdigit() else name for name in named])
    outputs = {value.name: list(value.shape) for value in graph.outputs}
    # What follows from the number of logits has other axes than were traced, and ONNX Runtime plans memory by them.
    changed = [value for value in graph.inputs if value.name == KEEP]
    while changed:
        for node in changed.pop().consumers():
            for value in node.outputs:
                value.shape = None
                changed.append(value)
    for value in graph.outputs:
        for axis, name in config.outputs[value.name].items():
            outputs[value.name][axis] = name
        value.shape = onnx_ir.Shape(outputs[value.name])


def _give_default(made: Any) -> None:
    """An input that is an initializer too may be left out: ONNX Runtime lists it as an overridable initializer."""
    import numpy as np
    import onnx_ir

    from prunekit.export.onnx_config import KEEP

    value = next(each for each in made.graph.inputs if each.name == KEEP)
    value.const_value = onnx_ir.tensor(np.array(0, dtype=np.int64), name=KEEP)
    made.graph.register_initializer(value)


@contextmanager
def _silent() -> Iterator[None]:
    """The exporter logs what it skips (torchvision) and warns about its own use of torch."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
