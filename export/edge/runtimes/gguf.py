"""llama.cpp, by way of llama-cpp-python."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

PACKAGES = ("llama-cpp-python",)


class Model:
    """The one .gguf file of ``folder``; on a GPU all layers of it. ``room`` tokens fit into a text."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        (file,) = folder.glob("*.gguf")
        self._log: Any = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        if device == "cuda" and b"CUDA" not in llama_cpp.llama_print_system_info():
            raise RuntimeError("the installed llama-cpp-python was built without CUDA")
        # Negative layers are all of them; a negative GPU is none, whatever the build has.
        options.n_gpu_layers = -1 if device == "cuda" else 0
        options.split_mode = llama_cpp.LLAMA_SPLIT_MODE_NONE
        options.main_gpu = 0 if device == "cuda" else -1
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), options)
        if not self._model:
            raise RuntimeError(f"llama.cpp can't load {file.name}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = room
        # llama.cpp's own default is four, however many CPUs there are.
        params.n_threads = params.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp can't run {file.name} with {room} tokens of context")
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model)))
        self._batch = int(llama_cpp.llama_n_batch(self._context))

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        return self._run(ids)

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run([token])

    def _run(self, ids: list[int]) -> int:
        for begin in range(0, len(ids), self._batch):
            part = ids[begin : begin + self._batch]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            code = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if code:
                raise RuntimeError(f"llama.cpp failed to compute (code {code})")
        logits = llama_cpp.llama_get_logits_ith(self._context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.vocab_size,)).argmax())
