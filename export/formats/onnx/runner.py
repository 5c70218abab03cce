"""An exported ONNX model in ONNX Runtime, with its KV cache bound from one step to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunekit.export.target import runtime_errors
from prunekit.models.runner import Array, MaskedRunner

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_KEEP = "num_logits_to_keep"


class OnnxRunner(MaskedRunner):
    """``model`` on the CPU in ``threads`` threads. The cache never leaves ONNX Runtime: a step's present tensors are
    bound as the next step's past. Raises PrunekitError where ONNX Runtime refuses the file."""

    def __init__(self, model: Path, threads: int | None = None):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Every decode step has a shape of its own, and a memory plan kept for each would only grow.
        options.enable_mem_pattern = False
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        with runtime_errors(f"ONNX Runtime refuses {model}"):
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        self._past = [(each.name, each.shape, _TYPES[each.type]) for each in inputs if each.shape[2:]]
        outputs = [each.name for each in self._session.get_outputs()]
        self._outputs = outputs
        self._can_keep = any(each.name == _KEEP for each in self._session.get_overridable_initializers())
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._binding: Any = None
        self._cache: list[Any] = []
        self._length = 0

    def _empty_cache(self, batch: int) -> list[Any]:
        return [self._value(np.zeros((batch, shape[1], 0, shape[3]), dtype)) for _, shape, dtype in self._past]

    def _run(self, ids: Array, keep: int, mask: Array = None, positions: Array = None) -> Array:
        """Logits of the last ``keep`` positions (0: all) of ids [batch, n] behind the cache, which grows by them.
        Without ``mask`` and ``positions`` nothing is padding."""
        batch, length = ids.shape
        first, last = self._length, self._length + length
        if mask is None:
            mask = np.ones((batch, last), dtype=np.int64)
            positions = np.broadcast_to(np.arange(first, last), (batch, length))
        feeds = {
            "input_ids": np.ascontiguousarray(ids, dtype=np.int64),
            "attention_mask": mask,
            "position_ids": np.ascontiguousarray(positions),
        }
        if self._can_keep:
            feeds[_KEEP] = np.array(keep, dtype=np.int64)
        binding = self._binding
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, self._value(value))
        for (name, _, _), value in zip(self._past, self._cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        # An output that is bound already would be written into, and each step's are longer.
        for name in self._outputs:
            binding.bind_output(name)
        with runtime_errors("ONNX Runtime could not run the model"):
            self._session.run_with_iobinding(binding)
        logits, *self._cache = binding.get_outputs()
        self._length = last
        return logits.numpy().astype(np.float32, copy=False)

    def _masked(self, ids: Array, mask: Array, positions: Array) -> Array:
        return self._run(ids, 1, mask, positions)[:, -1]

    def _restart(self, batch: int) -> None:
        self._binding = self._session.io_binding()
        self._cache = self._empty_cache(batch)
        self._length = 0

    def logits(self, ids: Array) -> Array:
        self._restart(1)
        made = self._run(np.asarray(ids)[None], 0)[0]
        self._restart(1)
        return made

    def start(self, ids: Array) -> Array:
        ids = np.asarray(ids)
        self._restart(len(ids))
        return self._run(ids, 1)[:, -1]

    def step(self, tokens: Array) -> Array:
        return self._run(np.asarray(tokens)[:, None], 1)[:, -1]

    def close(self) -> None:
        self._binding, self._cache, self._session = None, [], None
