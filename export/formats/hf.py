"""An ordinary Hugging Face folder: layers of their own widths, or the zero-padded uniform twin that any stock runtime
loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from prunekit.checkpoint.manifest import MANIFEST
from prunekit.checkpoint.rebuild import rebuild
from prunekit.export.target import CPU, FOLDER, Job, Requirement, Target, Written
from prunekit.models.runner import Runner, TorchRunner
from prunekit.models.source import load_model, resolve
from prunekit.plan import whole_plan

_TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class HuggingFace(Target):
    name = "hf"
    library = "transformers"
    summary = "A Hugging Face checkpoint in safetensors."
    dtypes = ("fp32", "fp16", "bf16")
    runs_with = (Requirement("transformers"),)
    takes_removed = True
    devices = (CPU, "cuda")
    limits = (
        "Layers that differ load with prunekit installed or trust_remote_code; --layout uniform needs neither, but "
        "pads every layer with zeros to the widest, so nothing is gained.",
    )

    batches = (
        "Prompts of different lengths go in together filled up on the left: "
        '`tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")`, and `generate` does the rest.'
    )

    def write(self, job: Job, folder: Path) -> Written:
        plan = whole_plan(job.source.shape)
        inner = folder / "checkpoint"
        rebuild(job.source, plan, inner, layout=job.options.layout, dtype=_TORCH_DTYPES[job.dtype])
        for file in inner.iterdir():
            file.rename(folder / file.name)
        inner.rmdir()
        # They tell how this model was made of the dense one; what rebuild wrote tells only of a copy.
        for name in (MANIFEST, "plan.json", "README.md"):
            (folder / name).unlink()
        pruning = job.source.path / "plan.json"
        if pruning.is_file():
            shutil.copyfile(pruning, folder / pruning.name)
        weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        shape = job.source.shape
        lookup = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
        element = 4 if job.dtype == "fp32" else 2
        return Written(
            decode_bytes=weights - element * lookup,
            facts={"layout": job.options.layout},
            placed=job.generation.everything,
        )

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        return TorchRunner(load_model(resolve(str(folder)), device=device))

    def usage(self, job: Job) -> str:
        uniform = job.options.layout == "uniform" or job.source.shape.is_uniform
        how = "" if uniform else ", trust_remote_code=True"
        # Without an answer, transformers asks whether to run the model's code, which the tokenizer does not need.
        data = "" if uniform else ", trust_remote_code=False"
        also = "" if uniform else "\n# or, without remote code: import prunekit first\n"
        return f"""```python
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

{FOLDER}
model = AutoModelForCausalLM.from_pretrained(folder{how}){also}
tokenizer = AutoTokenizer.from_pretrained(folder{data})
```"""
