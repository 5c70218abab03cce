"""A folder for onnxruntime-genai: fused ONNX graph, genai_config.json, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.formats.onnx_genai.check import CUDA_PACKAGE, TESTED
from prunekit.export.generation import put_templates
from prunekit.export.target import CPU, FOLDER, Job, Requirement, Target, Written
from prunekit.models.runner import Runner

if TYPE_CHECKING:
    import torch

_WIDENED = (
    "ONNX Runtime multiplies in float32 on CPUs without float16 arithmetic, and widens these weights when it loads "
    "them: memory and speed are those of fp32 there, and the size of the files is half."
)
_GENAI = Requirement(
    "onnxruntime-genai",
    extra="onnx-genai",
    distributions=(CUDA_PACKAGE,),
    cuda=f"pip install {CUDA_PACKAGE}=={TESTED[-1]}",
)


class OnnxGenai(Target):
    name = "onnx-genai"
    summary = "A folder for onnxruntime-genai: graph with fused attention, generation settings, tokenizer."
    dtypes = ("fp32", "fp16", "int4", "int8", "bf16")
    writes_with = (_GENAI, Requirement("onnx-ir", extra="onnx-genai"))
    runs_with = (_GENAI,)
    devices = (CPU, "cuda")
    limits = (
        "OLMo-2 is refused, for the model builder has no layers with norms behind them only; take onnx.",
        "Rotary embeddings of type longrope and heads of other than a multiple of 16 channels are refused; take onnx.",
        "Rotary embeddings of type dynamic fit no graph; take hf or vllm.",
        "int4 and int8 multiply by activations of 8 bits on a CPU, as ONNX Runtime's fastest kernels there do; for "
        "CUDA they are exported anew (--device cuda), with activations of 16 bits.",
        "On CUDA there is no fp32: ONNX Runtime's fused attention is 16-bit there. bf16 is for CUDA alone.",
    )

    batches = (
        "Prompts of different lengths go in together: `tokenizer.encode_batch(texts)` fills them up on the right with "
        "the padding token of genai_config.json; say how many they are as `batch_size` in `set_search_options`."
    )

    def computes(self, dtype: str, device: str) -> bool:
        return dtype != ("bf16" if device == CPU else "fp32")

    def check_device(self, kind: str) -> None:
        from prunekit.export.formats.onnx_genai.check import check_cuda

        if kind != CPU:
            check_cuda()

    def check(self, job: Job) -> None:
        from prunekit.export.formats.onnx_genai.check import check

        check(job)

    def write(self, job: Job, folder: Path) -> Written:
        from prunekit.export.formats.onnx_genai.builder import build
        from prunekit.export.formats.onnx_genai.config import CONFIG, genai_config, placed
        from prunekit.export.formats.onnx_genai.tokenizer import note

        decode_bytes = build(job, folder)
        job.release()
        text = json.dumps(genai_config(job), indent=1, ensure_ascii=False) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        put_templates(job.generation.templates, folder, named=False)
        notes = [_WIDENED if job.dtype == "fp16" and not job.on_gpu else None, note(job, folder)]
        if job.on_gpu:
            notes.append(_settle_cuda_graph(folder, job.device))
        return Written(tuple(filter(None, notes)), decode_bytes, placed=placed(job), runs_on=_runs_on(job))

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        from prunekit.export.formats.onnx_genai.foreign import check_genai

        check_genai(folder, files)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        from prunekit.export.formats.onnx_genai.runner import GenaiRunner, kv_element_bytes

        return GenaiRunner(folder, threads, kv_element_bytes(folder), device)

    def stored_weights(self, job: Job, folder: Path) -> Mapping[str, torch.Tensor] | None:
        if not job.dtype.startswith("int"):
            return None
        import onnx_ir

        from prunekit.export.formats.onnx_genai.builder import SCORER
        from prunekit.export.formats.onnx_genai.families import joined
        from prunekit.export.formats.onnx_genai.quantize import stored_weights

        return joined(stored_weights(onnx_ir.load(folder / SCORER), job.source.shape), job, job.source.shape)

    def usage(self, job: Job) -> str:
        needs = "`pip install onnxruntime-genai` is all it needs."
        if job.on_gpu:
            needs = f"It needs `pip install {CUDA_PACKAGE}` and the libraries of CUDA and cuDNN (not tried)."
        return f"""```python
from pathlib import Path

import onnxruntime_genai as og

{FOLDER}
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
params = og.GeneratorParams(model)
params.set_search_options(max_length=100, do_sample=False)
generator = og.Generator(model, params)
generator.append_tokens(tokenizer.encode("The capital of France is"))
while not generator.is_done():
    generator.generate_next_token()
print(tokenizer.decode(generator.get_sequence(0)))
```

{needs} `model.onnx` gives the logits of each prompt's last token, which is
what generating takes; `all_logits.onnx` is the same graph with those of all positions, for scoring texts (name it as
`filename` in genai_config.json). Both read their weights from `model.onnx.data`.
"""


def _runs_on(job: Job) -> tuple[str, ...]:
    """Fused attention takes float32 on a CPU alone, and bfloat16 on CUDA alone."""
    if job.dtype == "bf16":
        return ("cuda",)
    return (CPU, "cuda") if job.dtype == "fp16" or job.on_gpu else (CPU,)


def _settle_cuda_graph(folder: Path, device: str) -> str | None:
    """Leave CUDA graphs out of the config where they don't work here, and say so."""
    import numpy as np

    from prunekit.export.formats.onnx_genai.config import without_cuda_graph
    from prunekit.export.formats.onnx_genai.runner import GenaiRunner

    try:
        with GenaiRunner(folder, device=device) as runner:
            runner.greedy(np.ones((1, 3), dtype=np.int64), 4)
    except PrunekitError as error:
        without_cuda_graph(folder)
        why = str(error).replace(str(folder), folder.name).rstrip(".")
        return f"Decode steps are not captured as CUDA graphs, which failed here: {why}."
    return None
