"""ExecuTorch's .pte: one file for phones and small devices, its products by XNNPACK."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.checkpoint.rebuild import copy_tokenizer
from prunekit.errors import PrunekitError
from prunekit.export.formats.pytorch.runner import (
    TORCH_DTYPES,
    check_rope,
    decode_bytes,
    read_model_json,
    write_model_json,
)
from prunekit.export.target import CPU, Job, Requirement, Target, Written, runtime_errors
from prunekit.models.runner import Array, Runner
from prunekit.utils.process.child import safe_children
from prunekit.utils.quiet import quiet

MODEL_FILE = "model.pte"
# Tokens that go in at once. Memory for the logits of so many is planned: 25 MB for a vocabulary of 49,152.
CHUNK = 128
_SHORTEST = 16


@contextmanager
def _quietly() -> Iterator[None]:
    """ExecuTorch and torchao log and warn at import about CUDA libraries and their own deprecations."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def _partitioner() -> Any:
    """XNNPACK for all it can do but the products of attention: it would pack the whole KV cache anew at every step."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return XnnpackPartitioner(configs=[each for each in ALL_PARTITIONER_CONFIGS if each.__name__ != "BMMConfig"])


def _facts(job: Job, slots: int, chunk: int) -> dict[str, Any]:
    """Constant methods of the program, by the names under which ExecuTorch's own LLM runner asks for them."""
    generation = job.generation
    facts: dict[str, Any] = {
        "get_max_seq_len": chunk,
        "get_max_context_len": slots,
        "get_vocab_size": job.source.shape.vocab_size,
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    if generation.begin is not None:
        facts["get_bos_id"] = generation.begin
    if generation.ends:
        facts["get_eos_ids"] = list(generation.ends)
    return facts


def lowered(job: Job, dtype: str) -> Any:
    """ExecuTorch's program of the model, its cache as long as the job's context."""
    import torch
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    from prunekit.export.formats.pytorch.static_cache import StaticForward

    slots = job.context_length
    chunk = min(CHUNK, slots)
    model = job.load(dtype)
    forward = StaticForward(model, job.source.family, job.source.shape, slots).eval()
    example = (torch.zeros(1, 5, dtype=torch.int64), torch.arange(5))
    # Without a maximum, memory would be planned for the example's length.
    length = torch.export.Dim("length", max=chunk)
    with torch.no_grad():
        program = torch.export.export(forward, example, dynamic_shapes=({1: length}, {0: length}), strict=False)
    edge = to_edge_transform_and_lower(
        program,
        partitioner=[_partitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),
        constant_methods=_facts(job, slots, chunk),
    )
    # Without it, every step copies the whole cache twice: out of place, and back.
    return edge.to_executorch(ExecutorchBackendConfig(run_reinplace_pass=True))


class ExecuTorch(Target):
    name = "executorch"
    summary = "An ExecuTorch program whose products run in XNNPACK, with its KV cache inside."
    dtypes = ("fp32", "fp16")
    writes_with = (Requirement("executorch", extra="executorch"),)
    runs_with = (Requirement("executorch", extra="executorch"),)
    only_cpu = "its products are XNNPACK's, which is for CPUs"
    program = "a .pte file holds instructions and memory addresses that the runtime follows unchecked"
    limits = (
        "One sequence at a time, and prompt plus answer as long as --context-length said: memory for it is planned.",
        "A prompt goes in by at most 128 tokens at once.",
        "fp32 and fp16 only: for 8 or 4 bits on a device take gguf, or onnx-genai for 4 bits.",
        "Lowering takes about six seconds a layer.",
        "Processors with 16-bit arithmetic (most phones, x86 with AVX512-FP16) add up fp16 products in 16 bits, about "
        "as coarse as bf16; take fp32 where that is too much.",
    )
    # XNNPACK's f16-gemm for neonfp16arith and avx512fp16; elsewhere its f16-f32acc-gemm.
    half_sums = True
    batches = "It takes one text at a time: the program has a batch of one and refuses others."

    def check(self, job: Job) -> None:
        check_rope(job, job.context_length)
        if job.context_length < _SHORTEST:
            raise PrunekitError(
                f"An ExecuTorch program needs a --context-length of at least {_SHORTEST}, got {job.context_length}."
            )

    def write(self, job: Job, folder: Path) -> Written:
        dtype = TORCH_DTYPES[job.dtype]
        with _quietly(), runtime_errors("ExecuTorch could not lower the model"), safe_children():
            program = lowered(job, dtype)
        path = folder / MODEL_FILE
        with path.open("wb") as file:
            program.write_to_file(file)
        shape, slots = job.source.shape, job.context_length
        chunk = min(CHUNK, slots)
        placed = write_model_json(job, folder, dtype, context_length=slots, chunk=chunk)
        copy_tokenizer(job.source, folder, trust_remote_code=job.options.trust_remote_code)
        cache = slots * shape.kv_bytes_per_token(_bytes(dtype))
        notes = [
            f"The KV cache for {slots:,} tokens takes {cache / 1e6:.3g} MB of memory from the start; a smaller "
            "--context-length needs less.",
            "Memory given to the program must be zeroed at first, as ExecuTorch's Module does.",
        ]
        if shape.tie_word_embeddings:
            table = shape.vocab_size * shape.hidden_size * _bytes(dtype)
            notes.append(
                f"The tied embedding table is stored twice ({table / 1e6:.3g} MB more): to look up, and packed as head."
            )
        facts = {"context_length": slots, "chunk": chunk}
        return Written(tuple(notes), decode_bytes(shape, dtype), facts, placed)

    def open(self, folder: Path, threads: int | None = None, device: str = CPU) -> Runner:
        facts = read_model_json(folder)
        path = folder / MODEL_FILE
        with _quietly(), runtime_errors(f"ExecuTorch could not load {path}"):
            from executorch.extension.pybindings import portable_lib
            from executorch.runtime import Runtime

            if threads is not None:
                portable_lib._unsafe_reset_threadpool(threads)
            program = Runtime.get().load_program(path)
            method = program.load_method("forward")
        if method is None:
            raise PrunekitError(f"{path} has no method forward; export the model again.")
        return ExecuTorchRunner(program, method, facts)

    def usage(self, job: Job) -> str:
        if (job.source.path / "tokenizer.json").is_file():
            text = (
                'from tokenizers import Tokenizer\n\ntokenizer = Tokenizer.from_file("tokenizer.json")\n'
                'ids = tokenizer.encode("The meaning of life is").ids'
            )
            show = "print(tokenizer.decode(answer))"
        else:
            text, show = "ids = [1, 2, 3]  # token ids of your tokenizer", "print(answer)"
        return f"""It needs ExecuTorch's runtime alone; in Python:

```python
import torch
from executorch.runtime import Runtime
{text}

program = Runtime.get().load_program("{MODEL_FILE}")
forward = program.load_method("forward")
ends = {list(job.generation.ends)}  # get_eos_ids of the program
answer, seen = [], 0
for _ in range(20):
    # At most {min(CHUNK, job.context_length)} tokens a call, {job.context_length} in all; seen = 0 begins a new text.
    positions = torch.arange(seen, seen + len(ids))
    (logits,) = forward.execute((torch.tensor([ids]), positions))
    seen += len(ids)
    ids = [int(logits[0, -1].argmax())]
    if ids[0] in ends:
        break
    answer += ids
{show}
```

Inputs: `input_ids` int64 [1, length] and `cache_position` int64 [length]. Output: logits [1, length, vocabulary]. The
program names its limits in constant methods (`get_max_context_len`, `get_max_seq_len`, …), as ExecuTorch's own LLM
runner expects them: `executorch.extension.llm.runner.TextLLMRunner("{MODEL_FILE}", "tokenizer.json")` generates too.
`model.json` holds the chat templates, and how the checkpoint asks to draw tokens.
"""


def _bytes(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


class ExecuTorchRunner(Runner):
    """``method`` is the program's forward; the program must outlive it."""

    max_batch = 1

    def __init__(self, program: Any, method: Any, facts: dict[str, Any]):
        self._program, self._method = program, method
        self.vocab_size = int(facts["vocab_size"])
        self._slots, self._chunk = int(facts["context_length"]), int(facts["chunk"])
        self._seen = 0

    def _run(self, ids: Array) -> Iterator[Array]:
        """Logits of every position, float32 [n, vocab_size], chunk by chunk; each may be overwritten by the next."""
        import torch

        if self._method is None:
            raise PrunekitError("This export was closed; open it again.")
        if self._seen + len(ids) > self._slots:
            raise PrunekitError(
                f"The context of {self._slots} tokens is full; export the model with a larger --context-length."
            )
        for begin in range(0, len(ids), self._chunk):
            given = torch.as_tensor(np.asarray(ids[begin : begin + self._chunk], dtype=np.int64))
            places = torch.arange(self._seen, self._seen + len(given))
            with runtime_errors("ExecuTorch could not run the program"):
                (logits,) = self._method.execute((given[None], places))
            self._seen += len(given)
            yield logits[0].float().numpy()

    def logits(self, ids: Array) -> Array:
        self._seen = 0
        return np.concatenate([np.array(chunk) for chunk in self._run(ids)])

    def _last(self, ids: Array) -> Array:
        last = None
        for chunk in self._run(ids):
            last = np.array(chunk[-1:])
        return last

    def start(self, ids: Array) -> Array:
        self._check_batch(ids)
        self._seen = 0
        return self._last(ids[0])

    def step(self, tokens: Array) -> Array:
        self._check_batch(tokens)
        return self._last(tokens)

    @staticmethod
    def _check_batch(given: Array) -> None:
        if len(given) != 1:
            raise PrunekitError("An ExecuTorch program runs one sequence at a time.")

    def close(self) -> None:
        self._method = self._program = None
