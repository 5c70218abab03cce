"""Every target by name."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from prunekit.errors import PrunekitError
from prunekit.export.target import Target

# In the order in which they are listed; each module is imported when its target is asked for.
_TARGETS = {
    "hf": "formats.hf:HuggingFace",
    "onnx": "formats.onnx.target:Onnx",
    "onnx-genai": "formats.onnx_genai.target:OnnxGenai",
    "gguf": "formats.gguf.target:Gguf",
    "torchscript": "formats.pytorch.torchscript:TorchScript",
    "torch-export": "formats.pytorch.torch_export:TorchExport",
    "executorch": "formats.pytorch.executorch:ExecuTorch",
    "openvino": "formats.openvino.target:OpenVino",
    "vllm": "formats.vllm.target:Vllm",
    "tensorrt": "formats.tensorrt.target:TensorRT",
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
