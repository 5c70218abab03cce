"""An exported ONNX model in ONNX Runtime, with its KV cache bound from one step to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.export.formats.onnx.session import node_facts, open_session
from prunekit.export.target import CPU, runtime_errors
from prunekit.models.runner import Array, TensorRunner
from prunekit.utils.machine import synchronize

# What a tensor is made of, as OrtValue takes it (numpy has no bfloat16, but ONNX a number for it), and its bytes.
_TYPES: dict[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 4),
    "tensor(float16)": (np.float16, 2),
    "tensor(bfloat16)": (16, 2),
}
_KEEP = "num_logits_to_keep"


class OnnxRunner(TensorRunner):
    """``model`` on ``device``, on the CPU in ``threads`` threads. Nothing is copied: inputs are torch's tensors, the
    cache never leaves ONNX Runtime (a step's present tensors are bound as the next step's past), and logits are read
    where they are. Raises PrunekitError where ONNX Runtime refuses the file or the device."""

    def __init__(self, model: Path, threads: int | None = None, device: str = CPU):
        import onnxruntime
        import torch

        self.device = torch.device(device)
        self._session = open_session(model, threads, device)
        self.facts = node_facts(self._session)
        inputs = self._session.get_inputs()
        self._past = [(each.name, each.shape, _TYPES[each.type][0]) for each in inputs if each.shape[2:]]
        self.kv_element_bytes = next(_TYPES[each.type][1] for each in inputs if each.shape[2:])
        self._outputs = [each.name for each in self._session.get_outputs()]
        self._can_keep = any(each.name == _KEEP for each in self._session.get_overridable_initializers())
        self.vocab_size = int(self._session.get_outputs()[0].shape[-1])
        self._values = onnxruntime.OrtValue
        self._place = (self.device.type, self.device.index or 0)
        self._binding: Any = None
        self._cache: list[Any] = []
        self._length = 0

    def _run(self, ids: Any, keep: int, mask: Any = None, positions: Any = None) -> Any:
        """Logits of the last ``keep`` positions (0: all) of ids [batch, n] behind the cache, which grows by them: a
        tensor on the device. Without ``mask`` and ``positions`` nothing is padding."""
        import torch

        if self._session is None:
            raise PrunekitError("This export was closed; open it again.")
        batch, length = ids.shape
        first, last = self._length, self._length + length
        if mask is None:
            mask = torch.ones(batch, last, dtype=torch.int64, device=self.device)
            positions = torch.arange(first, last, device=self.device).expand(batch, -1)
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        if self._can_keep:
            # Where to slice is decided on the CPU.
            feeds[_KEEP] = torch.tensor(keep)
        binding = self._binding
        given = {name: tensor.contiguous() for name, tensor in feeds.items()}
        for name, tensor in given.items():
            binding.bind_ortvalue_input(name, self._values.from_dlpack(tensor))
        for (name, _, _), value in zip(self._past, self._cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        # An output that is bound already would be written into, and each step's are longer.
        for name in self._outputs:
            binding.bind_output(name, *self._place)
        # ONNX Runtime has a stream of its own: it must not read what torch is still writing, nor torch the reverse.
        synchronize(self.device)
        with runtime_errors("ONNX Runtime could not run the model"):
            self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        logits, *self._cache = binding.get_outputs()
        self._length = last
        return torch.from_dlpack(logits)

    def _last(self, ids: Any, mask: Any = None, positions: Any = None) -> Any:
        return self._run(ids, 1, mask, positions)[:, -1]

    def _restart(self, batch: int) -> None:
        # Dropped first, so that the old cache and the new one are never there together.
        self._binding, self._cache, self._length = self._session and self._session.io_binding(), [], 0
        self._cache = [
            self._values.ortvalue_from_shape_and_type((batch, shape[1], 0, shape[3]), dtype, *self._place)
            for _, shape, dtype in self._past
        ]

    def logits(self, ids: Array) -> Array:
        self._restart(1)
        made = self._run(self._tensor(ids)[None], 0)[0].float().cpu().numpy()
        self._restart(1)
        return made

    def close(self) -> None:
        self._binding, self._cache, self._session = None, [], None
