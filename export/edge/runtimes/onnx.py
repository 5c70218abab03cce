"""ONNX Runtime, with the cache bound from one step to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

PACKAGES = ("onnxruntime", "onnxruntime-gpu")


class Model:
    """model.onnx of ``folder`` on ``device``; ``threads`` are the CPU's."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Every step has a shape of its own, and a memory plan kept for each would only grow.
        options.enable_mem_pattern = False
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        providers = ["CPUExecutionProvider"]
        if device == "cuda":
            onnxruntime.preload_dlls()
            providers.insert(0, "CUDAExecutionProvider")
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        if providers[0] not in self._session.get_providers():
            raise RuntimeError(f"ONNX Runtime could not start {providers[0]}, and would run on the CPU")
        kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(bfloat16)": 16}
        inputs = self._session.get_inputs()
        self._past = [(each.name, each.shape, kinds[each.type]) for each in inputs if each.shape[2:]]
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._keeps = any(each.name == "num_logits_to_keep" for each in self._session.get_overridable_initializers())
        self._device = device
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self._cache: list[Any] = []
        self._length = 0

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        empty = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._cache = [empty((1, shape[1], 0, shape[3]), kind, self._device, 0) for _, shape, kind in self._past]
        self._length = 0
        return self._run(np.array([ids], dtype=np.int64))

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run(np.array([[token]], dtype=np.int64))

    def _run(self, ids: Any) -> int:
        first, last = self._length, self._length + ids.shape[1]
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, last), np.int64),
            "position_ids": np.arange(first, last)[None],
        }
        if self._keeps:
            feeds["num_logits_to_keep"] = np.array(1)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for (name, _, _), value in zip(self._past, self._cache):  # noqa: B905
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(self._outputs[0], "cpu")
        for name in self._outputs[1:]:
            binding.bind_output(name, self._device, 0)
        self._session.run_with_iobinding(binding)
        logits, *self._cache = binding.get_outputs()
        self._length = last
        return int(logits.numpy()[0, -1].argmax())
