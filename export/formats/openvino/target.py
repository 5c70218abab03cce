"""OpenVINO: IR whose KV cache is state that stays inside the runtime, one size of it a layer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.generation import pad_left, put_templates, template_key, write_generation_config
from prunekit.export.target import CPU, FOLDER, PADDED_LEFT, Job, Requirement, Target, Written, runtime_errors
from prunekit.models.runner import Array, MaskedRunner, Runner
from prunekit.models.stored.reading import StoredWeights
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.numerics.finite import check_fits
from prunekit.utils.process.telemetry import openvino_silent

MODEL = "openvino_model.xml"
# Of how many last positions logits are computed; 0 is all.
KEEP = "num_logits_to_keep"
# What OpenVINO GenAI reads of generation_config.json beside the tokens that end texts.
_SAMPLING = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "num_beams", "length_penalty"),
    *("no_repeat_ngram_size", "diversity_penalty", "stop_strings"),
)
_PAST, _PRESENT = "past_key_values.", "present."


class OpenVino(Target):
    name = "openvino"
    summary = "OpenVINO IR with its KV cache as state."
    dtypes = ("fp32", "fp16")
    writes_with = (
        Requirement("openvino", extra="openvino"),
        Requirement("onnx", extra="openvino"),
        Requirement("onnxscript", extra="openvino"),
        Requirement("optimum", extra="openvino"),
    )
    runs_with = (Requirement("openvino", extra="openvino"),)
    only_cpu = "OpenVINO has no device for NVIDIA's GPUs, and Intel's are not tried here"
    limits = (
        "fp16 stores weights in 16 bits and computes in whatever the device prefers; int8 and int4 are not made.",
    )

    batches = f"{PADDED_LEFT} OpenVINO GenAI does that by itself for a list of prompts."

    def write(self, job: Job, folder: Path) -> Written:
        from prunekit.export.formats.onnx.target import export_onnx

        with openvino_silent():
            import openvino
        if job.dtype == "fp16":
            weights = StoredWeights(job.source)
            check_fits(((name, weights.read(name)) for name in weights.names()), "float16")

        # Inside, so that it is on the same disk; what it holds is mapped into memory until the IR is saved.
        with temporary_folder("onnx", folder) as beside:
            path = export_onnx(job, beside, dtype="fp32", plain=True, logits="required")
            with runtime_errors(f"OpenVINO can't convert {job.source.name}"):
                model = openvino.Core().read_model(path)
                _make_stateful(model)
                _keep_all_logits(model)
                if job.dtype == "fp16":
                    _store_halves(model)
                openvino.save_model(model, folder / MODEL, compress_to_fp16=False)
                del model
        generation = job.generation
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        put_templates(generation.templates, folder)
        pad_left(folder)
        write_generation_config(generation, job.source.path, folder)
        return Written(
            # On the CPU weights are widened when they are loaded, whatever they are stored in.
            decode_bytes=job.source.shape.decode_bytes(4),
            facts={"kv_heads": [layer.num_key_value_heads for layer in job.source.shape.layers]},
            placed=generation.all_ends | {*_SAMPLING, template_key()},
        )

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        from prunekit.export.formats.openvino.foreign import check_openvino

        check_openvino(folder / MODEL)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        return OpenVinoRunner(folder / MODEL, threads)

    def usage(self, job: Job) -> str:
        return f"""The cache lies inside the model: an infer request appends to it until `reset_state()` is called.

```python
from pathlib import Path

import numpy as np
import openvino as ov
from transformers import AutoTokenizer

{FOLDER}
tokenizer = AutoTokenizer.from_pretrained(folder)
request = ov.Core().compile_model(f"{{folder}}/{MODEL}", "CPU").create_infer_request()
ids = tokenizer("Once upon a time", return_tensors="np").input_ids
request.reset_state()
seen = 0
for _ in range(32):
    seen += ids.shape[1]
    logits = request.infer({{
        "input_ids": ids,
        "attention_mask": np.ones((1, seen), np.int64),
        "position_ids": np.arange(seen - ids.shape[1], seen)[None],
        "beam_idx": np.zeros(1, np.int32),
    }})["logits"]
    ids = logits[:, -1:].argmax(-1)
    print(tokenizer.decode(ids[0]), end="", flush=True)
```

`beam_idx` says of which sequence of the batch each one continues; without beam search it counts from 0. The device may
be `"GPU"` too; `{{"INFERENCE_PRECISION_HINT": "f32"}}` as the third argument computes in full precision.

OpenVINO GenAI runs this folder as well, once its tokenizer is converted:

```sh
pip install openvino-genai 'openvino-tokenizers[transformers]'
convert_tokenizer . --with-detokenizer -o .
python -c 'import openvino_genai as g; print(g.LLMPipeline(".", "CPU").generate("Hello", max_new_tokens=32))'
```"""


def _make_stateful(model: Any) -> None:
    """Turn past_key_values.N.* and present.N.* into state of their layer's own shape, and add the input ``beam_idx``,
    int32 [batch]: the row of the state that each sequence continues. After a reset the state is [batch, K_N, 0, D]."""
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    beam = ops.parameter([-1], np.int32, name="beam_idx")
    beam.output(0).set_names({"beam_idx"})
    batch = ops.gather(ops.shape_of(model.input("input_ids")), [0], 0)
    pairs, sizes = {}, {}
    for port in model.inputs:
        name = port.get_any_name()
        if not name.startswith(_PAST):
            continue
        pairs[name] = _PRESENT + name.removeprefix(_PAST)
        # The transformation names a variable by both.
        sizes[name + pairs[name]] = [port.partial_shape[1].get_length(), 0, port.partial_shape[3].get_length()]
        readers = port.get_target_inputs()
        chosen = ops.gather(port, beam, 0)
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.add_parameters([beam])
    apply_make_stateful_transformation(model, pairs)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            size = ops.concat([batch, np.array(sizes[node.get_variable_id()], dtype=np.int64)], 0)
            node.set_arguments([ops.broadcast(np.array(0, dtype=np.float32), size)])
    model.validate_nodes_and_infer_types()


def _keep_all_logits(model: Any) -> None:
    """The input :data:`KEEP` becomes a constant 0: an input that must be given is in every other program's way."""
    from openvino import opset13 as ops

    wanted = next(each for each in model.get_parameters() if KEEP in each.output(0).names)
    for reader in wanted.output(0).get_target_inputs():
        reader.replace_source_output(ops.constant(np.array(0, dtype=np.int64), name=KEEP).output(0))
    model.remove_parameter(wanted)
    model.validate_nodes_and_infer_types()


def _store_halves(model: Any) -> None:
    """Store matrices as float16, widened where they are used.

    OpenVINO's own compression rounds vectors too, and rotary frequencies among them: at position 2,000 an angle would
    be off by a radian. It also makes the CPU take a slower kernel. Raises PrunekitError for numbers out of range.
    """
    import openvino
    from openvino import opset13 as ops

    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        if sum(size > 1 for size in node.shape) < 2:
            continue
        with np.errstate(over="ignore"):
            data = node.data.astype(np.float16)
        if not np.isfinite(data).all():
            raise PrunekitError("The model holds numbers too large for float16; export it with --dtype fp32.")
        readers = node.output(0).get_target_inputs()
        widened = ops.convert(ops.constant(data), "f32")
        for reader in readers:
            reader.replace_source_output(widened.output(0))


def _choose_logits(model: Any) -> None:
    """Reverse of :func:`_keep_all_logits`."""
    from openvino import opset13 as ops

    fixed = [each for each in model.get_ops() if each.get_friendly_name().startswith(KEEP)]
    if not fixed:
        raise PrunekitError("This IR was not written by prunekit, or has been rewritten; export the model again.")
    wanted = ops.parameter([], np.int64, name=KEEP)
    wanted.output(0).set_names({KEEP})
    for each in fixed:
        for reader in each.output(0).get_target_inputs():
            reader.replace_source_output(wanted.output(0))
    model.add_parameters([wanted])
    model.validate_nodes_and_infer_types()


class OpenVinoRunner(MaskedRunner):
    """IR on the CPU, in float32 whatever its weights are stored in. ``path`` is the .xml."""

    def __init__(self, path: Path, threads: int | None = None):
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            # Else activations would be rounded to 8 bits for weights that are compressed.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        with runtime_errors(f"OpenVINO can't load {path}"):
            with openvino_silent():
                import openvino

            core = openvino.Core()
            model = core.read_model(path)
            _choose_logits(model)
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.vocab_size = int(model.output("logits").partial_shape[2].get_length())
        self._seen = 0

    def _run(self, ids: Array, keep: int, mask: Array = None, positions: Array = None) -> Array:
        """Logits of the last ``keep`` positions (0: all) of ids [batch, n] behind what was seen. Without ``mask`` and
        ``positions`` nothing is padding."""
        ids = np.ascontiguousarray(ids, dtype=np.int64)
        batch, length = ids.shape
        end = self._seen + length
        if mask is None:
            mask = np.ones((batch, end), dtype=np.int64)
            positions = np.broadcast_to(np.arange(self._seen, end), (batch, length))
        given = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": np.ascontiguousarray(positions),
            "beam_idx": np.arange(batch, dtype=np.int32),
            KEEP: np.array(keep, dtype=np.int64),
        }
        with runtime_errors("OpenVINO could not run the model"):
            # The output is the runtime's own memory, and the next call writes over it.
            logits = self._request.infer(given, share_inputs=True, share_outputs=True)["logits"].copy()
        self._seen = end
        return logits

    def _forget(self) -> None:
        self._request.reset_state()
        self._seen = 0

    def _restart(self, batch: int) -> None:
        self._forget()

    def _masked(self, ids: Array, mask: Array, positions: Array) -> Array:
        return self._run(ids, 1, mask, positions)[:, -1]

    def logits(self, ids: Array) -> Array:
        self._forget()
        return self._run(np.asarray(ids)[None], 0)[0]

    def start(self, ids: Array) -> Array:
        self._forget()
        return self._run(ids, 1)[:, -1]

    def step(self, tokens: Array) -> Array:
        return self._run(np.asarray(tokens)[:, None], 1)[:, -1]

    def close(self) -> None:
        self._request = None
