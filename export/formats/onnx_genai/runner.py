"""An export in onnxruntime-genai."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.export.device import kind_of
from prunekit.export.formats.onnx_genai.builder import MODEL, SCORER
from prunekit.export.formats.onnx_genai.config import CONFIG, CUDA_GRAPH, captures
from prunekit.export.target import CPU, runtime_errors
from prunekit.models.runner import Array, Decoded, Runner
from prunekit.utils.files.atomic import read_json
from prunekit.utils.timing import Clock

# The likeliest token at every step, whatever the folder says of drawing tokens.
_LIKELIEST = {
    "do_sample": False,
    "num_beams": 1,
    "min_length": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
}


class GenaiRunner(Runner):
    """The folder's model on ``device``, on the CPU in ``threads`` threads, generating without sampling. The KV cache is
    onnxruntime-genai's; on a GPU decode steps are CUDA graphs where the folder asks for them. Raises PrunekitError
    where it refuses the folder or the device, or a text is longer than the context.

    One sequence at a time: for more it takes prompts, but no tokens behind them (only those that it picked itself).
    """

    max_batch = 1
    mixes_lengths = True

    def __init__(self, folder: Path, threads: int | None = None, kv_element_bytes: float = 4, device: str = CPU):
        settings = read_json(folder / CONFIG, "onnxruntime-genai config")
        self.vocab_size = int(settings["model"]["vocab_size"])
        self.context = int(settings["model"]["context_length"])
        self.kv_element_bytes = kv_element_bytes
        self._pad = int(settings["model"]["pad_token_id"])
        ends = settings["model"]["eos_token_id"]
        self._ends = ends if isinstance(ends, list) else [ends]
        self._folder, self._threads, self._device = folder, threads, device
        self._captures = device != CPU and captures(settings)
        self.facts = {} if device == CPU else {"cuda_graph": self._captures}
        self._loaded = ""
        self._model: Any = None
        self._generator: Any = None
        self._load(MODEL)

    def _load(self, filename: str) -> None:
        """Have that graph of the folder in memory, and no other."""
        if filename == self._loaded:
            return
        import onnxruntime_genai as og

        self.close()
        decoder: dict[str, Any] = {"filename": filename}
        if self._threads is not None:
            decoder["session_options"] = {"intra_op_num_threads": self._threads, "inter_op_num_threads": 1}
        with runtime_errors(f"onnxruntime-genai refuses {self._folder}"):
            config = og.Config(str(self._folder))
            config.overlay(json.dumps({"model": {"decoder": decoder}}))
            self._choose_device(config, filename)
            self._model = og.Model(config)
            there = str(self._model.device_type).lower()
        if there != kind_of(self._device):
            self.close()
            raise PrunekitError(
                f"onnxruntime-genai runs {self._folder} on {there}, not on {kind_of(self._device)}; export the model "
                f"again with --device {kind_of(self._device)}."
            )
        self._loaded = filename

    def _choose_device(self, config: Any, filename: str) -> None:
        """Whatever the folder's own config says: without a provider it is the CPU."""
        config.clear_providers()
        if self._device == CPU:
            return
        kind, _, index = self._device.partition(":")
        config.append_provider(kind)
        # Texts that are scored have a length of their own each, and a graph is for one length.
        graph = self._captures and filename == MODEL
        for name, value in (("device_id", index or "0"), (CUDA_GRAPH, "1" if graph else "0")):
            config.set_provider_option(kind, name, value)

    def _begin(self, ids: Array, room: int) -> Any:
        """A generator that has read prompts of int64 [batch, n] and may make ``room`` tokens more."""
        batch, length = ids.shape
        if length + room > self.context:
            raise PrunekitError(
                f"{length + room} tokens are more than the {self.context} this export was made for; export it with a "
                "larger --context-length."
            )
        import onnxruntime_genai as og

        self._generator = None
        params = og.GeneratorParams(self._model)
        params.set_search_options(batch_size=batch, max_length=length + room, **_LIKELIEST)
        self._generator = og.Generator(self._model, params)
        self._generator.append_tokens(np.ascontiguousarray(ids, dtype=np.int32))
        return self._generator

    def logits(self, ids: Array) -> Array:
        self._load(SCORER)
        with runtime_errors("onnxruntime-genai could not run the model"):
            generator = self._begin(np.asarray(ids)[None], 0)
            return np.array(generator.get_output("logits")[0], dtype=np.float32)

    def start(self, ids: Array) -> Array:
        ids = np.asarray(ids)
        self._load(MODEL)
        with runtime_errors("onnxruntime-genai could not run the model"):
            generator = self._begin(ids, self.context - ids.shape[1])
            return self._last(generator, len(ids))

    def step(self, tokens: Array) -> Array:
        tokens = np.asarray(tokens)
        with runtime_errors("onnxruntime-genai could not run the model"):
            self._generator.append_tokens(np.ascontiguousarray(tokens[:, None], dtype=np.int32))
            return self._last(self._generator, len(tokens))

    def _last(self, generator: Any, batch: int) -> Array:
        return np.array(generator.get_logits(), dtype=np.float32).reshape(batch, -1, self.vocab_size)[:, -1]

    def greedy(self, ids: Array, tokens: int, clock: Clock = time.perf_counter) -> Decoded:
        """As in :class:`Runner`, by onnxruntime-genai's own loop: generate_next_token picks and appends.

        A token that ends the text does not end the loop, for what is asked for is a number of tokens. It is no part of
        onnxruntime-genai's sequence, so it is appended as if it were given: that step's one run of the model.
        """
        ids = np.asarray(ids)
        self._load(MODEL)
        with runtime_errors("onnxruntime-genai could not run the model"):
            begin = clock()
            generator = self._begin(ids, tokens)
            generator.generate_next_token()
            made = [generator.get_next_tokens()]
            first = clock()
            for place in range(1, tokens):
                if generator.is_done():
                    generator.rewind_to(ids.shape[1] + place - 1)
                    generator.append_tokens(made[-1])
                generator.generate_next_token()
                made.append(generator.get_next_tokens())
            end = clock()
        return Decoded(np.stack(made, axis=1).astype(np.int64), first - begin, (end - first) / max(1, tokens - 1))

    def together(self, prompts: Sequence[Array], tokens: int) -> Array:
        """As in :class:`Runner`: shorter prompts are filled up on the right with the config's padding token."""
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), self._pad, dtype=np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = prompt
        self._load(MODEL)
        made = np.full((len(prompts), tokens), -1, dtype=np.int64)
        with runtime_errors("onnxruntime-genai could not run the model"):
            generator = self._begin(ids, tokens)
            for place in range(tokens):
                generator.generate_next_token()
                made[:, place] = generator.get_next_tokens()
                if generator.is_done():
                    break
        ended = np.isin(made, self._ends).cumsum(1)
        made[:, 1:][ended[:, :-1] > 0] = -1
        return made

    def close(self) -> None:
        self._generator = self._model = None
        self._loaded = ""


def kv_element_bytes(folder: Path) -> int:
    """Bytes of one number in the KV cache that the graph in ``folder`` keeps."""
    import onnx_ir

    with runtime_errors(f"onnxruntime-genai refuses {folder}"):
        graph = onnx_ir.load(folder / MODEL).graph
        kinds = {value.dtype for value in graph.inputs if (value.name or "").startswith("past_key_values.")}
    return max(int(kind.itemsize) for kind in kinds if kind is not None)
