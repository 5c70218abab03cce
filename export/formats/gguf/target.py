"""GGUF for stock llama.cpp: every layer with its own widths where an architecture takes that, else the padded twin."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.export.formats.gguf.architectures import WINDOWED, architecture_of, window_of
from prunekit.export.formats.gguf.quantize import DIRECT, QUANTISED, fallback_notes, fallbacks, quantise
from prunekit.export.formats.gguf.rope import rotation_of
from prunekit.export.formats.gguf.runner import LlamaCppRunner, check_cuda, gguf_file
from prunekit.export.formats.gguf.token_check import check_tokens
from prunekit.export.formats.gguf.vocab import Vocabulary, end_tokens, placed, vocabulary
from prunekit.export.formats.gguf.write import Stored, write_file
from prunekit.export.target import CPU, Job, Requirement, Target, Written
from prunekit.models.gguf.header import read_header
from prunekit.models.gguf.tensors import Architecture
from prunekit.models.runner import Runner
from prunekit.models.source import Source
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    import torch

_LLAMA_CPP = Requirement("llama-cpp-python", extra="llama-cpp")


class Gguf(Target):
    name = "gguf"
    summary = "One GGUF file with its tokenizer, for stock llama.cpp."
    dtypes = ("f16", "f32", "bf16", "q8_0", *QUANTISED)
    writes_with = (Requirement("gguf", extra="llama-cpp"),)
    runs_with = (_LLAMA_CPP,)
    # A block of llama.cpp's simple types, and the length its fast matrix products take rows in: at other widths f16
    # prefill was seen to be slower pruned than dense.
    ffn_multiple = 32
    limits = (
        "Layers of their own widths work for Llama, Mistral, Qwen2, Phi-3 and tied Qwen3; other families (and untied "
        "Qwen3) are padded with zeros to the widest layer, so nothing is gained: take onnx or vllm for these.",
        "Types below 8 bits are made by llama.cpp's own quantiser, which needs llama-cpp-python.",
        "Sliding windows work for Gemma only; other models are taken up to the length of their window.",
    )

    batches = (
        "llama.cpp's server reads prompts of different lengths together, each in a slot of its own: "
        "`llama-server -np 4` has four."
    )

    devices = (CPU, "cuda")
    # ggml lets cuBLAS do so (CUBLAS_TF32_TENSOR_OP_MATH).
    tf32 = True

    def check_device(self, kind: str) -> None:
        if kind != CPU:
            check_cuda()

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
                f"Only llama.cpp's own quantiser makes {job.dtype}; run `{_LLAMA_CPP.how()}`, or take "
                f"{', '.join(DIRECT[:-1])} or {DIRECT[-1]}."
            )

    def write(self, job: Job, folder: Path) -> Written:
        words = vocabulary(job)
        made = architecture_of(job.source, job.context_length)
        file = folder / file_name(job)
        wishes: dict[str, str] = {}
        if job.dtype in DIRECT:
            write_file(job, made, file, words, job.dtype)
        else:
            with temporary_folder("unquantised", folder.parent) as beside:
                plain = beside / "model.gguf"
                write_file(job, made, plain, words, _lossless(job.source), announced=job.dtype)
                wishes = quantise(plain, file, job.dtype)
        notes = [*_notes(job, made, words)]
        ends = end_tokens(words)
        facts: dict[str, Any] = {"architecture": made.name, "uniform_twin": made.twin, "file": file.name}
        if words.model != "none":
            facts |= {"tokenizer": words.model, "pre_tokenizer": words.pre}
            if _LLAMA_CPP.version is not None:
                checked = check_tokens(job, file, words)
                ends = checked.ends
                facts["texts_tokenised_alike"] = checked.texts
                if not checked.special_alike:
                    notes.append(
                        "Around special tokens, as chat templates set them, llama.cpp keeps blanks that transformers "
                        "drops or the other way round, so chats may get slightly other tokens there."
                    )
        tensors = read_header(file).tensors
        found = fallbacks(tensors.values(), job.dtype, wishes)
        facts["fallback_bytes"] = sum(each.extra_bytes for each in found)
        # Of an embedding table that is no head as well, a step reads one row.
        lookup = tensors["token_embd.weight"].nbytes if "output.weight" in tensors else 0
        read = sum(tensor.nbytes for tensor in tensors.values()) - lookup
        notes += fallback_notes(tensors, found, job.dtype)
        return Written(tuple(notes), read, facts, placed(words, ends))

    def check_foreign(self, folder: Path, files: Collection[str]) -> None:
        gguf_file(folder)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        return LlamaCppRunner(folder, threads, device=device)

    def open_exactly(self, folder: Path, device: str = CPU) -> Runner:
        return LlamaCppRunner(folder, exact=True, device=device)

    def stored_weights(self, job: Job, folder: Path) -> Mapping[str, torch.Tensor] | None:
        if job.dtype in ("f16", "f32", "bf16"):
            return None
        return Stored(job, gguf_file(folder))

    def usage(self, job: Job) -> str:
        name = file_name(job)
        return f"""Any frontend built on llama.cpp opens {name}. With llama.cpp itself:

```sh
llama-cli -m {name} -p "Once upon a time"
llama-server -m {name} -fa on{" -ngl 99" if job.on_gpu else ""}
```

With llama-cpp-python (`pip install llama-cpp-python`):

```python
from llama_cpp import Llama

model = Llama("{name}", n_ctx={job.context_length}{", n_gpu_layers=-1" if job.on_gpu else ""}, verbose=False)
print(model("Once upon a time", max_tokens=32)["choices"][0]["text"])
```
"""


def file_name(job: Job) -> str:
    """The name of the file: frontends show it, shells must not stumble over it."""
    label = re.sub(r"[^A-Za-z0-9._-]+", "-", model_label(job.source.name).split("/")[-1]).strip("-.")
    return f"{label or 'model'}-{job.dtype}.gguf"


def _lossless(source: Source) -> str:
    """The format that holds the checkpoint's numbers as they are."""
    return {"torch.float16": "f16", "torch.bfloat16": "bf16"}.get(str(source.dtype), "f32")


def _notes(job: Job, made: Architecture, words: Vocabulary) -> Iterator[str]:
    if made.twin:
        more = made.shape.parameters / job.source.shape.parameters - 1
        yield (
            f"llama.cpp's {made.name} has no layers of different widths, so all are padded with zeros to the widest: "
            f"{more:.0%} more parameters than the checkpoint."
        )
    if words.model == "none":
        yield "The checkpoint has no tokenizer, so the file has none either: llama.cpp runs it on token ids only."
    elif _LLAMA_CPP.version is None:
        yield "llama-cpp-python is not installed, so nothing proved that llama.cpp cuts text into the same tokens."
    if words.composed:
        yield (
            "The tokenizer composes Unicode (NFC) before it cuts text, and llama.cpp does not: give it composed text, "
            "as nearly all text is."
        )
    if words.second_blank:
        yield (
            "Before text that begins with a blank llama.cpp puts another, as SentencePiece does; this tokenizer in "
            "transformers does not."
        )
    window = window_of(job.source)
    if window is not None and made.name not in WINDOWED:
        yield f"The model's sliding window of {window:,} tokens is left out, so the file says that this is its length."
    if rotation_of(job.source).context is not None:
        yield "LongRoPE is written for its short range, so the file says that this is the model's length."
