"""What the fused graph can't compute, said before anything is written."""

from __future__ import annotations

from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.target import Job

# The builder's classes are no public interface: other versions may do something else under the same names.
TESTED = ("0.18.0",)
# The same with CUDA, instead of onnxruntime-genai.
CUDA_PACKAGE = "onnxruntime-genai-cuda"
# Of the builder: its class for a family, by module and name.
CLASSES = {
    "llama": ("llama", "LlamaModel"),
    "mistral": ("mistral", "MistralModel"),
    "qwen2": ("qwen", "QwenModel"),
    "qwen3": ("qwen", "Qwen3Model"),
    "gemma2": ("gemma", "Gemma2Model"),
    "gemma3_text": ("gemma", "Gemma3Model"),
    "phi3": ("phi", "Phi3MiniModel"),
    # The builder's class of SmolLM3 turns queries and keys in layers that have no rotary embedding.
    "smollm3": ("llama", "LlamaModel"),
}
# Frequencies of these are the same for every text; the others' depend on its length.
_ROPE = ("default", "linear", "llama3", "yarn")


def check(job: Job) -> None:
    """Raises PrunekitError where the installed onnxruntime-genai is none that was tested, or its graph can't hold this
    model; the message names what to do instead."""
    _check_version()
    family, config = job.source.family, job.source.config
    if family.model_type not in CLASSES:
        raise PrunekitError(f"onnxruntime-genai's graphs are not made for {family.name} here; export to onnx.")
    kind = rope_type(config)
    if kind not in _ROPE:
        other = "hf or vllm" if kind == "dynamic" else "onnx"
        raise PrunekitError(
            f"{job.source.name} stretches its positions by {kind!r}, whose angles depend on the text's length, and "
            f"onnxruntime-genai's graph holds one table of them; export to {other}."
        )
    head_dim = job.source.shape.head_dim
    if head_dim % 16:
        raise PrunekitError(
            f"ONNX Runtime's fused attention takes heads of a multiple of 16 channels, and {job.source.name} has "
            f"{head_dim}; export to onnx."
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ("silu", "swish", "gelu_pytorch_tanh"):
        raise PrunekitError(
            f"onnxruntime-genai's graph is tested with the activations silu and gelu_pytorch_tanh, and "
            f"{job.source.name} has {activation!r}; export to onnx."
        )


def rope_type(config: Any) -> str:
    """The kind of rotary embedding that a transformers config asks for."""
    parameters = getattr(config, "rope_parameters", None) or {}
    return str(parameters.get("rope_type", "default"))


def check_cuda() -> None:
    """Raises PrunekitError where the installed onnxruntime-genai was built without CUDA."""
    import onnxruntime_genai as og

    if not og.is_cuda_available():
        raise PrunekitError(
            "The installed onnxruntime-genai was built without CUDA; run `pip uninstall -y onnxruntime-genai && pip "
            f"install {CUDA_PACKAGE}=={TESTED[-1]}`, or leave --device out."
        )


def _check_version() -> None:
    from prunekit.utils.provenance import installed

    found = installed("onnxruntime-genai") or installed(CUDA_PACKAGE)
    if found is not None and found not in TESTED:
        raise PrunekitError(
            f"onnxruntime-genai {found} is installed, and its model builder may differ from the tested one; run "
            f"`pip install onnxruntime-genai=={TESTED[-1]}`, or export to onnx."
        )
