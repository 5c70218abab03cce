"""From a checkpoint to model.onnx: trace, name the axes, store every tensor once."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prunekit.errors import PrunekitError
from prunekit.export.target import Job, runtime_errors
from prunekit.utils.quiet import quiet

if TYPE_CHECKING:
    from prunekit.export.formats.onnx.config import PrunedOnnxConfig

MODEL = "model.onnx"
DATA = "model.onnx_data"
# Weights beside the graph are mapped into memory; inside it ONNX Runtime parses a copy, which was seen to stay (peak
# memory half as large again). A protobuf message ends at 2 GiB anyway.
EXTERNAL_FROM = 2**26
Logits = Literal["optional", "required", "all"]
# The fused operators came with 23; a plain graph asks for no more than older runtimes have.
_OPSETS = {True: 20, False: 23}
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


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
    present.N.key/.value, named and shaped as optimum's. ``dtype`` is fp32, fp16 or bf16 (default: the job's); ``plain``
    keeps to operators of the ONNX standard, for runtimes other than ONNX Runtime. A further input num_logits_to_keep
    (int64 []) says of how many last positions logits are computed, 0 for all: with ``logits`` "optional" it may be left
    out (0 then; ONNX Runtime's way), with "required" it is an input like others, with "all" there is none. Weights of
    more than ``external_from`` bytes go to model.onnx_data beside the graph. The file passes onnx.checker.
    Raises PrunekitError where the model can't be traced, or float16 is too small for its weights.
    """
    import onnx
    import onnx_ir

    from prunekit.export.formats.onnx.config import PrunedOnnxConfig
    from prunekit.export.formats.onnx.fusion import add_before_norm, tidy

    dtype = dtype or job.dtype
    if dtype not in _DTYPES:
        raise PrunekitError(f"ONNX is written in fp32, fp16 or bf16, not {dtype}.")
    check_rotation(job)
    config = PrunedOnnxConfig.of(job.source, dtype)
    model = job.load(_DTYPES[dtype])
    if dtype == "fp16":
        _check_range(model)
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
        # torch keeps what it has traced, and with it what was folded: other tensors than the model's.
        for value in made.graph.initializers.values():
            value.const_value = None
        del made
        job.release()
        onnx.checker.check_model(str(path), full_check=True)
    return path


def check_rotation(job: Job) -> None:
    """Raises PrunekitError for rotary embeddings that depend on what was computed before."""
    if "dynamic" in _rope_types(job):
        raise PrunekitError(
            f"{job.source.name} scales its rotary embeddings by the longest text seen so far (rope_type dynamic), "
            "which a graph can't; export it with --to hf or --to vllm."
        )


def _rope_types(job: Job) -> set[str]:
    parameters = getattr(job.source.config, "rope_parameters", None) or {}
    # One set for all layers, or one for each type of layer.
    sets = [parameters, *(each for each in parameters.values() if isinstance(each, dict))]
    return {each.get("rope_type", "default") for each in sets}


def _check_range(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise PrunekitError(f"{name} holds numbers too large for float16; export it with --dtype fp32.")


def _traced(job: Job, config: PrunedOnnxConfig, model: Any, plain: bool, logits: Logits) -> Any:
    """The model as an onnx_ir.Model with the names of ``config``."""
    import torch

    from prunekit.export.formats.onnx.config import BATCH, KEEP, LENGTH, PAST, TOTAL
    from prunekit.export.formats.onnx.graph import OnnxForward

    dummies = config.generate_dummy_inputs(batch_size=2, sequence_length=3)
    names = list(dummies)
    names.insert(3, KEEP)
    dummies[KEEP] = None if logits == "all" else torch.tensor(0)
    # Axes of one name are one number to torch. The mask's length is a sum of two, which a Dim can't be.
    dims: dict[str, Any] = {name: torch.export.Dim(name) for name in (BATCH, LENGTH, PAST)}
    dims[TOTAL] = torch.export.Dim.DYNAMIC
    axes = [{axis: dims[dim] for axis, dim in config.inputs.get(name, {}).items()} or None for name in names]
    forward = OnnxForward(model, fused=not plain, norm_offset=job.source.family.norm_offset).eval()
    try:
        with _silent():
            program = torch.onnx.export(
                forward,
                tuple(dummies[name] for name in names),
                dynamo=True,
                dynamic_shapes=(*axes[:4], tuple(axes[4:])),
                input_names=[name for name in names if dummies[name] is not None],
                output_names=list(config.outputs),
                opset_version=_OPSETS[plain],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        if "longrope" in _rope_types(job):
            raise PrunekitError(
                f"{job.source.name} has rotary embeddings of type longrope, which this transformers can't trace; take "
                "transformers 5.23, or export it with --to hf."
            ) from error
        raise (error.__cause__ or error) from None  # its own message is a page of general advice
    assert program is not None
    return program.model


def _name_axes(made: Any, config: PrunedOnnxConfig) -> None:
    """Name the axes of inputs and outputs as ``config`` does."""
    import onnx_ir

    from prunekit.export.formats.onnx.config import KEEP

    # What follows from the number of logits has other axes than were traced, and ONNX Runtime plans memory by them.
    shapes = {value.name: list(value.shape) for value in (*made.graph.inputs, *made.graph.outputs)}
    changed = [value for value in made.graph.inputs if value.name == KEEP]
    while changed:
        for node in changed.pop().consumers():
            for value in node.outputs:
                value.shape = None
                changed.append(value)
    for values, named in ((made.graph.inputs, config.inputs), (made.graph.outputs, config.outputs)):
        for value in values:
            for axis, name in named.get(value.name, {}).items():
                shapes[value.name][axis] = name
            value.shape = onnx_ir.Shape(shapes[value.name])


def _give_default(made: Any) -> None:
    """An input that is an initializer too may be left out: ONNX Runtime lists it as an overridable initializer."""
    import numpy as np
    import onnx_ir

    from prunekit.export.formats.onnx.config import KEEP

    value = next(each for each in made.graph.inputs if each.name == KEEP)
    value.const_value = onnx_ir.tensor(np.array(0, dtype=np.int64), name=KEEP)
    made.graph.register_initializer(value)


@contextmanager
def _silent() -> Iterator[None]:
    """torch logs what it skips and prints what it can't trace, whole graphs; it warns about its own use of itself."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    with warnings.catch_warnings(), quiet(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(before)
