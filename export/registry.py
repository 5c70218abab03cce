"""Every target by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from prunekit.errors import PrunekitError
from prunekit.export.base import Target

# In the order in which they are listed; each module is imported when its target is asked for.
_TARGETS = {
    "hf": "hf:HuggingFace",
    "onnx": "onnx:Onnx",
    "onnx-genai": "onnx_genai:OnnxGenai",
    "gguf": "gguf:Gguf",
    "torchscript": "torchscript:TorchScript",
    "torch-export": "torch_export:TorchExport",
    "executorch": "executorch:ExecuTorch",
    "openvino": "openvino:OpenVino",
    "vllm": "vllm:Vllm",
    "tensorrt": "tensorrt:TensorRT",
}
TARGET_NAMES = tuple(_TARGETS)


@cache
def target(name: str) -> Target:
    """The target of that name. Raises PrunekitError where there is none."""
    if name not in _TARGETS:
        raise PrunekitError(f"There is no target {name!r}; choose one of {', '.join(_TARGETS)}.")
    module, _, cls = _TARGETS[name].partition(":")
    made: Target = getattr(import_module(f"prunekit.export.{module}"), cls)()
    return made
