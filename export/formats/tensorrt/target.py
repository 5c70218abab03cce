"""TensorRT: ONNX of plain operators, and the trtexec command that builds an engine of it on the device."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.formats.onnx.target import export_onnx
from prunekit.export.formats.tensorrt.check import Shapes, check_operators
from prunekit.export.parity import check_parity, compare, sample
from prunekit.export.target import CPU, Job, Requirement, Target, Written
from prunekit.models.runner import Runner
from prunekit.plan.shape import ModelShape
from prunekit.utils.provenance import model_label

SCRIPT = "build-engine.sh"
ENGINE = "model.engine"
# Batches for which shapes are inferred; the script takes any.
_BATCHES = (1, 8)


@dataclass(frozen=True)
class Phase:
    """An optimisation profile of the engine: (new tokens, tokens in the cache) at its smallest, its best and its
    largest. At each of the three all inputs must fit together, as TensorRT infers shapes there."""

    name: str
    smallest: tuple[int, int]
    best: tuple[int, int]
    largest: tuple[int, int]

    def points(self) -> tuple[tuple[str, tuple[int, int]], ...]:
        return ("min", self.smallest), ("opt", self.best), ("max", self.largest)


def phases(context: int) -> tuple[Phase, Phase]:
    """Profile 0 reads a prompt into an empty cache, profile 1 adds one token to a cache."""
    return (
        Phase("prompt", (1, 0), (max(1, context // 4), 0), (context, 0)),
        Phase("token", (1, 1), (1, max(1, context // 2)), (1, context - 1)),
    )


def input_shapes(shape: ModelShape, batch: int, new: int, past: int) -> dict[str, tuple[int, ...]]:
    """The engine's inputs and their sizes; every layer's cache has that layer's own number of KV heads."""
    sizes: dict[str, tuple[int, ...]] = {
        "input_ids": (batch, new),
        "attention_mask": (batch, past + new),
        "position_ids": (batch, new),
    }
    for index, layer in enumerate(shape.layers):
        for kind in ("key", "value"):
            sizes[f"past_key_values.{index}.{kind}"] = (batch, layer.num_key_value_heads, past, shape.head_dim)
    return sizes


class TensorRT(Target):
    name = "tensorrt"
    summary = "ONNX of plain operators, and the trtexec command that builds an engine of it."
    dtypes = ("fp16", "fp32")
    writes_with = (
        Requirement("onnx", extra="onnx"),
        Requirement("onnxscript", extra="onnx"),
        Requirement("optimum", extra="onnx"),
    )
    only_cpu = f"the graph is compared on the CPU, and {SCRIPT} builds the engine on its GPU, untested"
    program = "an engine is machine code"
    limits = (
        "Never run here: the graph is compared with PyTorch in ONNX Runtime, and its shapes are inferred over both "
        "profiles, but no engine is built.",
        "trtexec of TensorRT 10 or newer is needed (JetPack 6.1 or newer); an engine runs only on the kind of GPU it "
        "was built on.",
        "A prompt goes in whole, into an empty cache.",
    )
    unverified = (
        "not run in TensorRT, which needs a GPU: the graph was checked operator by operator and shape by shape, and "
        "compared with PyTorch in ONNX Runtime where that is installed"
    )

    def check(self, job: Job) -> None:
        if job.context_length < 2:
            raise PrunekitError("An engine needs a context of at least 2 tokens; choose a larger --context-length.")

    def write(self, job: Job, folder: Path) -> Written:
        path = export_onnx(job, folder, plain=True)
        facts: dict[str, Any] = {}
        notes = []
        if find_spec("onnxruntime") is not None:
            facts["onnxruntime"] = _compared(job, path)
        else:
            _last_logits_only(path)
            notes.append("onnxruntime is not installed, so the graph was not compared with PyTorch.")
        facts |= _checked(job.source.shape, path, job.context_length)
        script = folder / SCRIPT
        script.write_text(build_script(job.source.shape, job.dtype, job.context_length), encoding="utf-8")
        script.chmod(0o755)
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        element = 4 if job.dtype == "fp32" else 2
        return Written(tuple(notes), job.source.shape.decode_bytes(element), facts)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        raise PrunekitError(
            f"prunekit does not run TensorRT engines; build one with {SCRIPT} and measure it with trtexec on its GPU."
        )

    def usage(self, job: Job) -> str:
        precision = (
            "The graph is float16 and the engine strongly typed: norms and softmax stay in float32, as in PyTorch."
            if job.dtype == "fp16"
            else "The graph is float32; products may use TF32 unless `--noTF32` is added."
        )
        return f"""An engine belongs to the kind of GPU it was built on, so build it there (TensorRT 10 or newer; on a
Jetson that is JetPack 6.1 or newer, and trtexec lies in /usr/src/tensorrt/bin):

```sh
sh {SCRIPT}                       # one sequence
BATCH=8 sh {SCRIPT}               # a server: up to 8 at once
WORKSPACE_MIB=512 sh {SCRIPT}     # a Jetson with little memory; more options are passed on to trtexec
```

**This engine was never run**: see `unverified` in the manifest. {precision}

Profile 0 reads a prompt of up to {job.context_length:,} tokens: the cache inputs are empty (length 0). Profile 1 takes
one token and a cache of up to {job.context_length - 1:,}. `present.N.key` and `.value` are the next step's
`past_key_values.N.*`: keep them on the GPU and swap pointers. `attention_mask` is as long as cache and new tokens
together. `logits` are those of the last position, [batch, 1, {job.source.shape.vocab_size}]. Shapes differ in every
decode step, so CUDA graphs don't apply to profile 1."""


def build_script(shape: ModelShape, dtype: str, context: int) -> str:
    """A POSIX shell script that runs trtexec with both profiles."""
    lines = [
        "#!/bin/sh",
        "# Builds a TensorRT engine of model.onnx for this machine's GPU. BATCH: most sequences at once;",
        "# WORKSPACE_MIB: memory that the builder may use for one layer; more options are passed on to trtexec.",
        "set -eu",
        'cd -- "$(dirname -- "$0")"',
        "BATCH=${BATCH:-1}",
        "WORKSPACE_MIB=${WORKSPACE_MIB:-2048}",
        "PATH=$PATH:/usr/src/tensorrt/bin",
        "command -v trtexec >/dev/null || { echo 'trtexec is missing: install TensorRT 10 or newer' >&2; exit 1; }",
        # trtexec 8 would silently take the last profile for the only one.
        "trtexec --help | grep -q -e '--profile ' || { echo 'TensorRT 10 or newer is needed' >&2; exit 1; }",
    ]
    options = []
    for index, phase in enumerate(phases(context)):
        options.append(f"--profile={index}")
        for point, (new, past) in phase.points():
            batch = "1" if point == "min" else "${BATCH}"
            sizes = input_shapes(shape, 1, new, past)
            text = ",".join(f"{name}:{'x'.join([batch, *map(str, size[1:])])}" for name, size in sizes.items())
            lines.append(f'{phase.name}_{point}="{text}"')
            options.append(f'"--{point}Shapes=${phase.name}_{point}"')
    if dtype == "fp16":
        options.append("--stronglyTyped")
    options += ['"--memPoolSize=workspace:$WORKSPACE_MIB"', "--skipInference"]
    parts = ["exec trtexec --onnx=model.onnx", f"--saveEngine={ENGINE}", *options, '"$@"']
    return "\n".join([*lines, " \\\n  ".join(parts)]) + "\n"


def _compared(job: Job, path: Path) -> dict[str, Any]:
    """What ONNX Runtime makes of the graph, against PyTorch; leaves the graph with logits of the last position only.

    Raises PrunekitError where it differs.
    """
    from prunekit.export.formats.onnx.runner import OnnxRunner

    given = sample(job)
    prompt = given.windows[0][None, :24]
    with OnnxRunner(path) as runner:
        parity = compare(job, runner, given)
        before = runner.start(prompt)
    check_parity(f"The ONNX graph of {model_label(job.source.name)}", parity, job)
    _last_logits_only(path)
    with OnnxRunner(path) as runner:
        after = runner.start(prompt)
    if not np.array_equal(before, after):
        raise PrunekitError("The graph computes other logits for its last position alone; report this.")
    return parity.to_dict()


def _last_logits_only(path: Path) -> None:
    """Fix how many positions get logits at one: an engine has no optional inputs, and the logits of a whole prompt
    would take gigabytes."""
    import onnx
    from onnx import numpy_helper

    from prunekit.export.formats.onnx.config import KEEP

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    made = {KEEP: np.array(1, dtype=np.int64)}
    for kind in (graph.input, graph.initializer):
        for each in list(kind):
            if each.name == KEEP:
                kind.remove(each)
    constants = {each.name: each for each in graph.initializer}
    # What is computed of it alone (its negative, as a vector) is where the slice before the head starts.
    for node in list(graph.node):
        if not any(name in made for name in node.input):
            continue
        if node.op_type == "Reshape":
            made[node.output[0]] = made[node.input[0]].reshape(numpy_helper.to_array(constants[node.input[1]]))
        elif node.op_type == "Neg":
            made[node.output[0]] = -made[node.input[0]]
        else:
            continue
        graph.node.remove(node)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in made.items() if name != KEEP)
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_value = 1
    # The shapes behind the slice are others now.
    del graph.value_info[:]
    onnx.save(model, path)


def _checked(shape: ModelShape, path: Path, context: int) -> dict[str, Any]:
    """Operators, and the shape of every tensor at all corners of both profiles. Raises PrunekitError where something
    is amiss."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    check_operators(model)
    operators = sorted({node.op_type for node in model.graph.node})
    shapes = Shapes(model)
    points = [
        (phase, batch, new, past)
        for phase in phases(context)
        for _, (new, past) in phase.points()
        for batch in _BATCHES
    ]
    for phase, batch, new, past in points:
        known = shapes.infer(input_shapes(shape, batch, new, past))
        wanted: dict[str, tuple[int, ...]] = {"logits": (batch, 1, shape.vocab_size)}
        for index, layer in enumerate(shape.layers):
            for kind in ("key", "value"):
                wanted[f"present.{index}.{kind}"] = (batch, layer.num_key_value_heads, past + new, shape.head_dim)
        for name, expected in wanted.items():
            if known.get(name) != expected:
                raise PrunekitError(
                    f"{name} has the shape {known.get(name)} where {expected} was expected ({phase.name} of {new} "
                    f"tokens behind {past}); report this."
                )
    return {"operators": operators, "shapes_inferred_at": len(points)}
