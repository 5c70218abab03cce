"""GGUF for stock llama.cpp: every layer with its own widths where an architecture takes that, else the padded twin."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prunekit.checkpoint import rebuild
from prunekit.errors import PrunekitError
from prunekit.export.base import Job, Requirement, Target, Written
from prunekit.export.gguf_architectures import architecture_of, rotation_of, window_of
from prunekit.export.gguf_quantize import DIRECT, QUANTISED, fallback_notes, fallbacks, quantise
from prunekit.export.gguf_runner import LlamaCppRunner, gguf_file
from prunekit.export.gguf_vocab import check_tokens, vocabulary
from prunekit.export.gguf_write import stored, write_file
from prunekit.plan import whole_plan
from prunekit.provenance import model_label
from prunekit.runner import Runner
from prunekit.source import Source, resolve

if TYPE_CHECKING:
    import torch

_LLAMA_CPP = Requirement("llama-cpp-python", extra="llama-cpp")


class Gguf(Target):
    name = "gguf"
    summary = "One GGUF file with its tokenizer, for stock llama.cpp."
    dtypes = ("f16", "f32", "bf16", "q8_0", *QUANTISED)
    writes_with = (Requirement("gguf", extra="llama-cpp"),)
    runs_with = (_LLAMA_CPP,)
    limits = (
        "Layers of their own widths work for Llama, Mistral, Qwen2 and tied Qwen3; other families (and untied Qwen3) "
        "are padded with zeros to the widest layer, so nothing is gained: take onnx or vllm for these.",
        "Types below 8 bits are made by llama.cpp's own quantiser, which needs llama-cpp-python.",
        "Sliding windows work for Gemma only; other models are taken up to the length of their window.",
    )

    def check(self, job: Job) -> None:
        architecture_of(job.source, job.context_length)
        rotation = rotation_of(job.source)
        if rotation.context is not None and job.context_length > rotation.context:
            raise PrunekitError(
                f"{job.source.name} rotates texts beyond {rotation.context:,} tokens otherwise (LongRoPE), which "
                f"llama.cpp does for short ones too then; say --context-length {rotation.context}."
            )
        vocabulary(job)
        if job.dtype not in DIRECT and _LLAMA_CPP.version is None:
            raise PrunekitError(
                f"Only llama.cpp's own quantiser makes {job.dtype}; run `{_LLAMA_CPP.how}`, or take "
                f"{', '.join(DIRECT[:-1])} or {DIRECT[-1]}."
            )

    def write(self, job: Job, folder: Path) -> Written:
        from gguf import GGUFReader

        words = vocabulary(job)
        made = architecture_of(job.source, job.context_length)
        notes = []
        file = folder / file_name(job)
        with ExitStack() as stack:
            source = job.source
            if made.twin:
                beside = stack.enter_context(TemporaryDirectory(dir=folder.parent, prefix=".gguf-twin."))
                source = _twin(source, Path(beside) / "model", job.context_length)
                more = source.shape.parameters / job.source.shape.parameters - 1
                notes.append(
                    f"llama.cpp's {made.name} has no layers of different widths, so all are padded with zeros to the "
                    f"widest: {more:.0%} more parameters than the checkpoint."
                )
            if job.dtype in DIRECT:
                write_file(job, source, file, words, job.dtype)
            else:
                beside = stack.enter_context(TemporaryDirectory(dir=folder.parent, prefix=".gguf-unquantised."))
                plain = Path(beside) / "model.gguf"
                write_file(job, source, plain, words, _lossless(source), announced=job.dtype)
                quantise(plain, file, job.dtype)
        notes += _notes(job, words)
        facts: dict[str, Any] = {"architecture": made.name, "uniform_twin": made.twin, "file": file.name}
        if words.model != "none":
            facts |= {"tokenizer": words.model, "pre_tokenizer": words.pre}
            if _LLAMA_CPP.version is not None:
                facts["lines_tokenised_alike"] = check_tokens(job, file, words)
        tensors = GGUFReader(file).tensors
        found = fallbacks(tensors, job.dtype)
        facts["fallback_bytes"] = sum(each.extra_bytes for each in found)
        has_head = any(tensor.name == "output.weight" for tensor in tensors)
        read = sum(int(tensor.n_bytes) for tensor in tensors if not (has_head and tensor.name == "token_embd.weight"))
        return Written((*notes, *fallback_notes(found, job.dtype)), read, facts)

    def open(self, folder: Path, threads: int | None = None) -> Runner:
        return LlamaCppRunner(folder, threads)

    def open_exactly(self, folder: Path) -> Runner:
        return LlamaCppRunner(folder, exact=True)

    def stored_weights(self, job: Job, folder: Path) -> Mapping[str, torch.Tensor] | None:
        if job.dtype in ("f16", "f32", "bf16"):
            return None
        return stored(job, gguf_file(folder))

    def usage(self, job: Job) -> str:
        name = file_name(job)
        return f"""Any frontend built on llama.cpp opens {name}. With llama.cpp itself:

```sh
llama-cli -m {name} -p "Once upon a time"
llama-server -m {name}
```

With llama-cpp-python (`pip install llama-cpp-python`):

```python
from llama_cpp import Llama

model = Llama("{name}", n_ctx={job.context_length}, verbose=False)
print(model("Once upon a time", max_tokens=32)["choices"][0]["text"])
```
"""


def file_name(job: Job) -> str:
    """The name of the file: frontends show it, shells must not stumble over it."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", model_label(job.source.name).split("/")[-1]).strip("-.")
    return f"{label or 'model'}-{job.dtype}.gguf"


def _twin(source: Source, folder: Path, context: int) -> Source:
    rebuild(source, whole_plan(source.shape), folder, layout="uniform")
    twin = resolve(str(folder))
    # The twin's shape decides what a stock architecture takes of it.
    architecture_of(twin, context)
    return twin


def _lossless(source: Source) -> str:
    """The format that holds the checkpoint's numbers as they are."""
    return {"torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(source.dtype), "f32")


def _notes(job: Job, words: Any) -> Iterator[str]:
    if words.model == "none":
        yield "The checkpoint has no tokenizer, so the file has none either: llama.cpp runs it on token ids only."
    if words.composed:
        yield (
            "The tokenizer composes Unicode (NFC) before it cuts text, and llama.cpp does not: give it composed text, "
            "as nearly all text is."
        )
    window = window_of(job.source)
    if window is not None and job.source.family.model_type not in ("gemma2", "gemma3_text"):
        yield f"The model's sliding window of {window:,} tokens is left out, so the file says that this is its length."
    if rotation_of(job.source).context is not None:
        yield "LongRoPE is written for its short range, so the file says that this is the model's length."
