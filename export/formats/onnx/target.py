"""ONNX with a KV cache, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from prunekit.export.formats.onnx.optimum_config import stock_fields, write_config
from prunekit.export.formats.onnx.write import DATA, MODEL, check_rotation, export_onnx
from prunekit.export.generation import pad_left, put_templates, write_generation_config
from prunekit.export.target import CPU, Job, Requirement, Target, Written
from prunekit.models.runner import Runner
from prunekit.utils.provenance import install_extra

__all__ = ["Onnx", "export_onnx"]


class Onnx(Target):
    name = "onnx"
    summary = "One ONNX graph with its KV cache, for ONNX Runtime."
    dtypes = ("fp32", "fp16", "bf16")
    writes_with = (
        Requirement("onnx", extra="onnx"),
        Requirement("onnxscript", extra="onnx"),
        Requirement("optimum", extra="onnx"),
    )
    runs_with = (
        Requirement("onnxruntime", extra="onnx", distributions=("onnxruntime-gpu",), cuda=install_extra("onnx-gpu")),
    )
    limits = (
        "ONNX Runtime 1.23 or newer is needed, for the Attention operator of opset 23; prunekit, and a GPU, need 1.26.",
        "On a CPU float16 weights are widened when the model is loaded: fp16 halves the file, but neither memory nor "
        "time; --to onnx-genai with int4 does.",
        "optimum-onnx's ORTModelForCausalLM has one number of KV heads for all layers, so it runs the export only "
        "where pruning left all layers the same number; transformers.js 4 runs all.",
        "Rotary embeddings of type dynamic depend on earlier texts, which a graph can't; take --to hf or vllm.",
    )

    devices = (CPU, "cuda")
    widens_halves = True

    def computes(self, dtype: str, device: str) -> bool:
        return dtype != "bf16" or device != CPU

    def check_device(self, kind: str) -> None:
        from prunekit.export.formats.onnx.session import check_provider

        if kind != CPU:
            check_provider(kind)

    def check(self, job: Job) -> None:
        check_rotation(job)

    def write(self, job: Job, folder: Path) -> Written:
        from prunekit.checkpoint.rebuild import copy_tokenizer

        export_onnx(job, folder)
        generation = job.generation
        optimum = write_config(job, folder, DATA if (folder / DATA).exists() else None)
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        put_templates(generation.templates, folder)
        pad_left(folder)
        write_generation_config(generation, job.source.path, folder)
        notes = []
        if (folder / DATA).exists():
            notes.append(f"The weights are in {DATA}, which {MODEL} needs beside it.")
        if job.dtype == "fp16" and not job.on_gpu:
            notes.append(
                "ONNX Runtime's CPU kernels compute in float32: fp16 halves the file, but saves no time there."
            )
        return Written(
            tuple(notes),
            # A CPU widens half-precision weights when the session is made, so a step reads four bytes either way.
            decode_bytes=job.source.shape.decode_bytes(4),
            facts={
                "kv_heads": [layer.num_key_value_heads for layer in job.source.shape.layers],
                "loads_in_optimum": optimum,
            },
            placed=generation.everything,
            runs_on=("cuda",) if job.dtype == "bf16" else None,
        )

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        from prunekit.export.formats.onnx.foreign import check_onnx

        check_onnx(folder / MODEL, folder, files)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        from prunekit.export.formats.onnx.runner import OnnxRunner

        return OnnxRunner(folder / MODEL, threads, device)

    def usage(self, job: Job) -> str:
        return f"""```python
{_ON_CUDA if job.on_gpu else _ON_CPU}
```

Inputs and outputs are named as optimum's. {_BINDING[job.on_gpu]} {_OPTIMUM[stock_fields(job) is not None]}

In JavaScript, transformers.js 4 or newer runs this folder, in Node.js and in browsers:

```sh
npm install @huggingface/transformers
```

```js
import {{ env, pipeline }} from "@huggingface/transformers";

env.localModelPath = "./"; // where this folder lies; in a browser, where it is served
env.allowRemoteModels = false;
// {MODEL} lies in no subfolder, and has no suffix for its type.
const generator = await pipeline("text-generation", ".", {{ subfolder: "", dtype: "fp32" }});
const [made] = await generator("Once upon a time", {{ max_new_tokens: 40, do_sample: false }});
console.log(made.generated_text);
```"""


_ON_CPU = """import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
outputs = [each.name for each in session.get_outputs()]
# Every layer has its own number of KV heads: shapes are read from the graph.
past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
half = past[0].type == "tensor(float16)"
cache = [np.zeros((1, each.shape[1], 0, each.shape[3]), np.float16 if half else np.float32) for each in past]

ids = np.array([tokenizer("Once upon a time")["input_ids"]])
text = ids[0].tolist()
for _ in range(40):
    total = cache[0].shape[2] + ids.shape[1]
    logits, *cache = session.run(
        outputs,
        {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - ids.shape[1], total)[None],
            "num_logits_to_keep": np.array(1),  # may be left out: logits of all positions are computed then
            **{each.name: tensor for each, tensor in zip(past, cache)},
        },
    )
    ids = logits[:, -1].argmax(-1)[:, None]
    text.append(int(ids[0, 0]))
print(tokenizer.decode(text))"""
_ON_CUDA = """import numpy as np
import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(".")
device, provider = "cuda", "CUDAExecutionProvider"
onnxruntime.preload_dlls()  # CUDA and cuDNN of Python packages, where they are installed that way
session = onnxruntime.InferenceSession("model.onnx", providers=[provider, "CPUExecutionProvider"])
assert provider in session.get_providers(), "without its CUDA libraries ONNX Runtime takes the CPU"
outputs = [each.name for each in session.get_outputs()]
# Every layer has its own number of KV heads: shapes are read from the graph. The cache never leaves the device.
past = [each for each in session.get_inputs() if each.name.startswith("past_key_values.")]
kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": 16}
empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
cache = [empty((1, each.shape[1], 0, each.shape[3]), kinds[each.type], device, 0) for each in past]

ids = np.array([tokenizer("Once upon a time")["input_ids"]])
text = ids[0].tolist()
for _ in range(40):
    total = cache[0].shape()[2] + ids.shape[1]
    given = {
        "input_ids": ids,
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(total - ids.shape[1], total)[None],
        "num_logits_to_keep": np.array(1),  # may be left out: logits of all positions are computed then
    }
    binding = session.io_binding()
    for name, array in given.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    for each, tensor in zip(past, cache):
        binding.bind_ortvalue_input(each.name, tensor)
    binding.bind_output("logits", "cpu")
    for name in outputs[1:]:
        binding.bind_output(name, device, 0)
    session.run_with_iobinding(binding)
    logits, *cache = binding.get_outputs()
    ids = logits.numpy()[:, -1].argmax(-1)[:, None]
    text.append(int(ids[0, 0]))
print(tokenizer.decode(text))"""
_BINDING = {
    False: "Bind the cache to OrtValues (`session.io_binding()`) to keep it from being copied between steps.",
    True: "A CUDA graph can't hold these steps: the cache's tensors grow, and a graph is for tensors of one shape.",
}
_OPTIMUM = {
    True: "All layers have the same number of KV heads: `optimum.onnxruntime.ORTModelForCausalLM` loads this folder.",
    False: "`optimum.onnxruntime.ORTModelForCausalLM` has one KV shape for all layers: it refuses this model at the "
    "first token.",
}
