"""A GGUF file in llama.cpp, by way of llama-cpp-python's low-level API."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.export.target import CPU
from prunekit.models.gguf.header import check_header, read_header
from prunekit.models.runner import Array, Runner

# Written by prunekit: the room that the export was asked for. Frontends ignore it.
CONTEXT_KEY = "prunekit.context_length"
_DEFAULT_CONTEXT = 2048
_LOG_ERROR = 4
# Texts that one context holds at a time.
_SEQUENCES = 8


class _Log:
    """What llama.cpp prints, kept instead of shown: the first error is the only reason it gives for a failure."""

    def __init__(self) -> None:
        self.last_error = ""
        self._callback: Any = None
        self._lines: list[str] | None = None

    def install(self) -> None:
        """From here on llama.cpp is silent in this process. Forgets earlier errors."""
        import llama_cpp

        if self._callback is None:
            self._callback = llama_cpp.llama_log_callback(self._write)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        self.last_error = ""

    @contextmanager
    def kept(self) -> Iterator[list[str]]:
        """Everything that is said while the block runs."""
        self._lines = []
        try:
            yield self._lines
        finally:
            self._lines = None

    def _write(self, level: int, text: bytes, _: Any) -> None:
        line = " ".join(text.decode(errors="replace").split())
        if self._lines is not None:
            self._lines.append(line)
        if level == _LOG_ERROR and line and not self.last_error:
            # "llama_model_load: error loading model: ..." says nothing that the message behind it does not.
            self.last_error = re.sub(r"^\w+: (error loading model: )?", "", line).rstrip(".")


LOG = _Log()


def gguf_file(folder: Path) -> Path:
    """The one .gguf file of an export, whose header is as it should be. Raises PrunekitError where it isn't."""
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else [folder]
    if len(files) != 1:
        raise PrunekitError(f"{folder} holds {len(files)} .gguf files instead of one; export the model again.")
    check_header(read_header(files[0]))
    return files[0]


def check_cuda() -> None:
    """Raises PrunekitError where the installed llama-cpp-python was built without CUDA."""
    import llama_cpp

    # It names what it was built with; llama_supports_gpu_offload is true of Vulkan and Metal too.
    if not llama_cpp.llama_supports_gpu_offload() or b"CUDA" not in llama_cpp.llama_print_system_info():
        raise PrunekitError(
            "The installed llama-cpp-python was built without CUDA; with NVIDIA's compiler at hand run "
            "`CMAKE_ARGS=-DGGML_CUDA=on pip install --force-reinstall --no-cache-dir --no-binary llama-cpp-python "
            "llama-cpp-python`, or leave --device out."
        )


def load(file: Path, *, vocab_only: bool = False, device: str = CPU) -> Any:
    """A llama_model pointer, all layers on ``device``. Raises PrunekitError with llama.cpp's last words where it
    refuses the file."""
    import llama_cpp

    LOG.install()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = vocab_only
    # Negative layers are all of them, the output head among them; a negative GPU is none, whatever the build has.
    params.n_gpu_layers = 0 if device == CPU else -1
    params.split_mode = llama_cpp.LLAMA_SPLIT_MODE_NONE
    params.main_gpu = -1 if device == CPU else int(device.partition(":")[2] or 0)
    model = llama_cpp.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        raise PrunekitError(f"llama.cpp can't load {file.name}: {LOG.last_error or 'it gives no reason'}.")
    return model


def token_ids(model: Any, text: str, special: bool = False) -> list[int]:
    """``text`` as llama.cpp tokenises it, special tokens in it recognised, begin and end added with ``special``."""
    import llama_cpp

    vocab = llama_cpp.llama_model_get_vocab(model)
    data = text.encode("utf-8")
    buffer = (llama_cpp.llama_token * (len(data) + 8))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), buffer, len(buffer), special, True)
    if count < 0:
        raise PrunekitError(f"llama.cpp makes more tokens of {text[:30]!r} than it has bytes.")
    return list(buffer[:count])


class LlamaCppRunner(Runner):
    """One model in one llama.cpp context on ``device``.

    ``exact`` keeps the KV cache in float32 and leaves flash attention out, so that nothing is rounded but what the file
    rounds. Otherwise llama.cpp's own defaults hold: what users get.

    Several prompts are read as llama.cpp's server reads those of its slots: tokens of all in one batch, each of its own
    sequence.
    """

    mixes_lengths = True

    def __init__(self, folder: Path, threads: int | None = None, *, exact: bool = False, device: str = CPU):
        import llama_cpp

        self._api = llama_cpp
        self._context: Any = None
        self._batch: Any = None
        on_cpu = device == CPU
        self._model = load(gguf_file(folder), device=device)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.kv_element_bytes = 4 if exact else 2
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._room()
        # All share one cache, so that a single one still has it whole.
        params.n_seq_max, params.kv_unified = _SEQUENCES, True
        params.n_threads = params.n_threads_batch = threads or cores()
        params.no_perf = True
        # A build for GPUs would lend large products of a model on the CPU to them.
        params.offload_kqv = params.op_offload = not on_cpu
        if exact:
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
            params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            # Windows of Gemma's caches are cut to the window; the gate compares what a full one computes.
            params.swa_full = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            reason = LOG.last_error or "it gives no reason"
            self.close()
            raise PrunekitError(f"llama.cpp can't run {folder.name}: {reason}.")
        self._n_batch = llama_cpp.llama_n_batch(self._context)
        self._n_context = llama_cpp.llama_n_ctx(self._context)
        self._batch = llama_cpp.llama_batch_init(self._n_batch, 0, 1)
        self._used = 0

    def _room(self) -> int:
        """Tokens to make room for: what the export was asked for, else the model's own up to a default."""
        api = self._api
        buffer = ctypes.create_string_buffer(32)
        if api.llama_model_meta_val_str(self._model, CONTEXT_KEY.encode(), buffer, len(buffer)) > 0:
            return int(buffer.value)
        return min(api.llama_model_n_ctx_train(self._model), _DEFAULT_CONTEXT)

    def _decode(self, ids: Array, every: bool) -> Array:
        """Append tokens, int64 [n]. Returns logits, float32 [n or 1, vocab_size], which the next call overwrites."""
        api, batch = self._api, self._batch
        if self._used + len(ids) > self._n_context:
            raise PrunekitError(
                f"{self._used + len(ids):,} tokens are more than the {self._n_context:,} this export was made for; "
                "export it with a larger --context-length."
            )
        made = []
        for begin in range(0, len(ids), self._n_batch):
            part = ids[begin : begin + self._n_batch]
            last = begin + len(part) == len(ids)
            for place, token in enumerate(part):
                batch.token[place] = int(token)
                batch.pos[place] = self._used + place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = every
            batch.logits[len(part) - 1] = every or last
            batch.n_tokens = len(part)
            code = api.llama_decode(self._context, batch)
            if code:
                raise PrunekitError(
                    f"llama.cpp failed to compute (code {code}): {LOG.last_error or 'no reason given'}."
                )
            self._used += len(part)
            if every or last:
                rows = len(part) if every else 1
                pointer = api.llama_get_logits(self._context)
                values = np.ctypeslib.as_array(pointer, shape=(rows * self.vocab_size,))
                made.append(values.reshape(rows, self.vocab_size))
                if every and not last:
                    made[-1] = made[-1].copy()
        return made[0] if len(made) == 1 else np.concatenate(made)

    def together(self, prompts: Sequence[Array], tokens: int) -> Array:
        if len(prompts) > _SEQUENCES:
            raise PrunekitError(f"At most {_SEQUENCES} texts are read together here, and these are {len(prompts)}.")
        if sum(map(len, prompts)) > self._n_batch or sum(map(len, prompts)) + tokens * len(prompts) > self._n_context:
            raise PrunekitError(
                "These texts are longer than the room this export was made for; give fewer at a time, or export it "
                "with a larger --context-length."
            )
        self._forget()
        fed = [list(map(int, prompt)) for prompt in prompts]
        seen = [0] * len(prompts)
        made = np.empty((len(prompts), tokens), dtype=np.int64)
        for place in range(tokens):
            made[:, place] = self._decode_rows(fed, seen).argmax(-1)
            seen = [before + len(row) for before, row in zip(seen, fed, strict=True)]
            fed = [[int(token)] for token in made[:, place]]
        return made

    def _decode_rows(self, fed: Sequence[Sequence[int]], seen: Sequence[int]) -> Array:
        """Append tokens to each sequence, behind ``seen`` of its own, in one batch. Returns each one's last logits."""
        api, batch = self._api, self._batch
        at, last = 0, []
        for sequence, (row, before) in enumerate(zip(fed, seen, strict=True)):
            for place, token in enumerate(row):
                batch.token[at], batch.pos[at] = token, before + place
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = place == len(row) - 1
                at += 1
            last.append(at - 1)
        batch.n_tokens = at
        code = api.llama_decode(self._context, batch)
        if code:
            raise PrunekitError(f"llama.cpp failed to compute (code {code}): {LOG.last_error or 'no reason given'}.")
        rows = [api.llama_get_logits_ith(self._context, each) for each in last]
        return np.stack([np.ctypeslib.as_array(each, shape=(self.vocab_size,)).copy() for each in rows])

    def _forget(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), False)
        self._used = 0

    def logits(self, ids: Array) -> Array:
        self._forget()
        return self._decode(np.asarray(ids), True).astype(np.float32)

    def start(self, ids: Array) -> Array:
        self._forget()
        return self._decode(np.asarray(ids)[0], False).copy()

    def step(self, tokens: Array) -> Array:
        return self._decode(np.asarray(tokens), False).copy()

    def close(self) -> None:
        api = self._api
        if self._batch is not None:
            api.llama_batch_free(self._batch)
        if self._context:
            api.llama_free(self._context)
        if self._model:
            api.llama_model_free(self._model)
        self._batch = self._context = self._model = None


def cores() -> int:
    import torch

    return torch.get_num_threads()
