"""OpenVINO on the CPU, in float32 as prunekit times it; the cache is the model's state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13

PACKAGES = ("openvino",)
_KEEP = "num_logits_to_keep"


class Model:
    """openvino_model.xml of ``folder``."""

    def __init__(self, folder: Path, threads: int, device: str, room: int):
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        core = openvino.Core()
        model = core.read_model(str(folder / "openvino_model.xml"))
        _keep_last_logits(model)
        self.vocab_size = int(model.output("logits").partial_shape[2].get_length())
        self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self._seen = 0

    def start(self, ids: list[int]) -> int:
        """Forget what was, read a prompt. Returns the likeliest token behind it."""
        self._request.reset_state()
        self._seen = 0
        return self._run(np.array([ids], dtype=np.int64))

    def step(self, token: int) -> int:
        """Append a token. Returns the likeliest behind it."""
        return self._run(np.array([[token]], dtype=np.int64))

    def _run(self, ids: Any) -> int:
        first, self._seen = self._seen, self._seen + ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((1, self._seen), np.int64),
            "position_ids": np.arange(first, self._seen)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return int(self._request.infer(given, share_inputs=True, share_outputs=True)["logits"][0, -1].argmax())


def _keep_last_logits(model: Any) -> None:
    """Logits of the last position alone, as OpenVINO GenAI asks for them too: the constant is how many (0: all)."""
    for node in model.get_ops():
        if node.get_friendly_name().startswith(_KEEP):
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(opset13.constant(np.array(1, dtype=np.int64)).output(0))
    model.validate_nodes_and_infer_types()
