"""onnxruntime-genai, by its own loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai

PACKAGES = ("onnxruntime-genai", "onnxruntime-genai-cuda")


class Model:
    """The folder's model with the providers that its own config names; ``room`` tokens fit into a text."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        config = onnxruntime_genai.Config(str(folder))
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        settings = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))
        self.vocab_size = int(settings["model"]["vocab_size"])
        self._room = room
        self._model = onnxruntime_genai.Model(config)
        self._generator: Any = None

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        self._generator = None
        params = onnxruntime_genai.GeneratorParams(self._model)
        # The likeliest token at every step, whatever the folder says of drawing tokens.
        params.set_search_options(
            batch_size=1,
            max_length=self._room,
            do_sample=False,
            num_beams=1,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        self._generator = onnxruntime_genai.Generator(self._model, params)
        self._generator.append_tokens(np.array([ids], dtype=np.int32))
        self._length = len(ids)
        return self._next()

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        if self._generator.is_done():
            # A token that ends the text is no part of the sequence: it is appended as if it were given.
            self._generator.rewind_to(self._length - 1)
            self._generator.append_tokens(np.array([[token]], dtype=np.int32))
        return self._next()

    def _next(self) -> int:
        self._generator.generate_next_token()
        self._length += 1
        return int(self._generator.get_next_tokens()[0])
