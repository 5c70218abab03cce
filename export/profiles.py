"""A device in one word: which targets, precisions and widths suit it, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.export.export import Exported, export
from prunekit.export.target import Options
from prunekit.models.source import Source
from prunekit.plan.rounding import rounding_preset
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.hashes import digests
from prunekit.utils.files.replacing import PROFILE
from prunekit.utils.phases.telling import phases
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label

MANIFEST = PROFILE.manifest
# Weights in a block of llama.cpp's K-quants, and of its simpler types.
_K_BLOCK, _BLOCK = 256, 32


@dataclass(frozen=True)
class Choice:
    """One export of a profile. ``pad_ffn`` is the multiple that FFN widths are padded to; ``why`` explains all three
    in sentences; ``run`` is Markdown: how to run it on that device."""

    target: str
    dtype: str
    pad_ffn: int
    why: str
    run: str

    @property
    def folder(self) -> str:
        return f"{self.target}-{self.dtype}"


@dataclass(frozen=True)
class Profile:
    """A kind of device. ``rounding`` is the preset that suits it when the model is pruned anew, ``why`` says so."""

    name: str
    device: str
    rounding: str
    why: str
    choices: tuple[Choice, ...]


_LLAMA_CPP = (
    "llama.cpp's K-quants come in blocks of 256 along a row, and the rows of down_proj are as long as the FFN is wide: "
    "any other width falls back to a larger type, so FFNs are padded to 256 (to 32, a simpler type's block, where the "
    "model's hidden size is no multiple of 256 and its other rows fall back anyway)."
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "jetson-orin",
            "NVIDIA Jetson Orin (8 to 64 GB shared memory, 68 to 205 GB/s, compute capability 8.7)",
            "gguf",
            "Decoding one sequence is bound by memory traffic there, so bytes a weight decide; FFN multiples of 256 "
            "keep 4-bit blocks whole and are also multiples of the GPU's tiles.",
            (
                Choice(
                    "gguf",
                    "q4_k_m",
                    256,
                    "Four bits a weight leave the least to read and fit the smallest Orin. " + _LLAMA_CPP,
                    "Build llama.cpp with `-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87`, then "
                    "`llama-server -m gguf-q4_k_m/*.gguf -ngl 99 -fa on`.",
                ),
                Choice(
                    "tensorrt",
                    "fp16",
                    64,
                    "TensorRT builds the fastest 16-bit engine for prompts; 64 channels are one of its fp16 tiles. The "
                    "engine must be built on the device itself.",
                    "`cd tensorrt-fp16 && sh build-engine.sh` on the Jetson (JetPack 6.1 or newer has trtexec in "
                    "/usr/src/tensorrt/bin).",
                ),
            ),
        ),
        Profile(
            "server-gpu",
            "A datacentre GPU (A100, L40S, H100 and newer) that serves many sequences at once",
            "gpu",
            "Batches make the products tensor-core work, whose 16-bit tiles are 64 to 128 wide.",
            (
                Choice(
                    "vllm",
                    "bf16",
                    64,
                    "vLLM batches continuously and takes per-layer widths as they are; bfloat16 is what most models "
                    "were trained in. FFNs are padded to 64, one tensor-core tile, at a fraction of a percent.",
                    "`pip install vllm` and prunekit (`pip install .` in the folder of its source), then "
                    "`sh vllm-bf16/serve.sh`.",
                ),
                Choice(
                    "tensorrt",
                    "fp16",
                    64,
                    "For a fixed engine without Python. The engine must be built on the GPU that runs it.",
                    "`cd tensorrt-fp16 && sh build-engine.sh` in NVIDIA's TensorRT container.",
                ),
            ),
        ),
        Profile(
            "cpu",
            "A server or desktop CPU (x86-64 with AVX2, or Arm)",
            "gguf",
            "A CPU decodes as fast as it reads weights: 4 bits are the fastest, 8 bits lose next to nothing.",
            (
                Choice(
                    "gguf",
                    "q4_k_m",
                    256,
                    "The smallest and fastest that llama.cpp has at tolerable loss. " + _LLAMA_CPP,
                    "`llama-cli -m gguf-q4_k_m/*.gguf`, or llama-cpp-python.",
                ),
                Choice(
                    "gguf",
                    "q8_0",
                    32,
                    "Where quality matters more than size. Blocks are 32 long, so FFNs are padded to 32.",
                    "`llama-cli -m gguf-q8_0/*.gguf`, or llama-cpp-python.",
                ),
                Choice(
                    "onnx-genai",
                    "int4",
                    1,
                    "For applications on ONNX Runtime (C++, C#, Java, Python). MatMulNBits takes any width, so nothing "
                    "is padded.",
                    "`pip install onnxruntime-genai`; `onnx-genai-int4/README.md` has a script.",
                ),
            ),
        ),
        Profile(
            "mobile",
            "A phone or tablet (Arm CPU, 4 GB and more)",
            "gguf",
            "Memory and its traffic bound a phone, so 4-bit blocks decide the widths.",
            (
                Choice(
                    "gguf",
                    "q4_k_m",
                    256,
                    "Runs in every llama.cpp app on Android and iOS. " + _LLAMA_CPP,
                    "Copy gguf-q4_k_m/*.gguf to the device; any app built on llama.cpp opens it.",
                ),
                Choice(
                    "executorch",
                    "fp32",
                    1,
                    "PyTorch's own runtime for apps, on XNNPACK's Arm kernels, which take any width. Weights stay "
                    "float32, so it is the larger of the two.",
                    "Bundle executorch-fp32/model.pte with the app (ExecuTorch's Android or iOS library with the "
                    "XNNPACK backend).",
                ),
            ),
        ),
    )
}


@dataclass(frozen=True)
class Bundle:
    """What :func:`export_profile` made: the exports, and the choices that could not be made, each with the reason."""

    path: Path
    profile: Profile
    exports: tuple[tuple[Choice, Exported], ...]
    left_out: tuple[tuple[Choice, str], ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "profile": self.profile.name,
            "path": str(self.path),
            "exports": [
                {"folder": choice.folder, "why": choice.why, **made.to_dict()} for choice, made in self.exports
            ],
            "left_out": [{"folder": choice.folder, "reason": reason} for choice, reason in self.left_out],
        }


def profile_named(name: str) -> Profile:
    """Raises PrunekitError where there is no such profile."""
    if name not in PROFILES:
        raise PrunekitError(f"There is no profile {name!r}; choose one of {', '.join(PROFILES)}.")
    return PROFILES[name]


def export_profile(
    source: Source,
    profile: Profile,
    out: Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    verify: bool = True,
) -> Bundle:
    """Every choice of ``profile``, each an export of its own in ``out``, and a README of how to run them, atomically.

    A choice that this model or this machine can't have (a missing package, a family that the target refuses, an export
    that differs from PyTorch) is left out and named. Raises PrunekitError where none can be made.
    """
    options = options or Options()
    made: list[tuple[Choice, Exported]] = []
    left_out: list[tuple[Choice, str]] = []
    titles = [choice.folder for choice in profile.choices]
    with new_folder(out, overwrite, kind=PROFILE, inputs=source.inputs) as folder, phases(*titles):
        for choice in profile.choices:
            wanted = replace(options, dtype=choice.dtype, pad_ffn=_padding(choice, source, options))
            try:
                with progress(choice.folder, 1):
                    exported = export(source, choice.target, folder / choice.folder, wanted, verify=verify)
                made.append((choice, replace(exported, path=out / choice.folder)))
            except PrunekitError as error:
                left_out.append((choice, str(error)))
        if not made:
            reasons = " ".join(f"{choice.folder}: {reason}" for choice, reason in left_out)
            raise PrunekitError(f"Nothing of the profile {profile.name} could be exported. {reasons}")
        bundle = Bundle(out, profile, tuple(made), tuple(left_out))
        (folder / "README.md").write_text(_readme(source, bundle), encoding="utf-8")
        manifest = {"format": "prunekit-profile", "version": 1, "profile": profile.name}
        manifest["exports"] = [choice.folder for choice, _ in made]  # type: ignore[assignment]
        manifest["files"] = digests(folder)  # type: ignore[assignment]
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return bundle


def _padding(choice: Choice, source: Source, options: Options) -> int:
    """The multiple that FFNs are padded to for this model."""
    if choice.target == "gguf" and choice.pad_ffn == _K_BLOCK and source.shape.hidden_size % _K_BLOCK:
        return _BLOCK
    # Every device of a tensor-parallel server gets a shard of that multiple.
    return choice.pad_ffn * options.tensor_parallel if choice.pad_ffn > 1 else 1


def _fit(source: Source, profile: Profile) -> str:
    """Whether the widths the checkpoint has suit the device, and what to do where they don't."""
    shape = source.shape
    rounding = rounding_preset(profile.rounding, shape.head_dim)
    widest = max(layer.intermediate_size for layer in shape.layers)
    odd = [
        index
        for index, layer in enumerate(shape.layers)
        if layer.intermediate_size % rounding.ffn_multiple and layer.intermediate_size != widest
    ]
    if not odd:
        return f"This checkpoint's FFN widths suit it: multiples of {rounding.ffn_multiple}, or the dense model's own."
    return (
        f"{len(odd)} of this checkpoint's {shape.num_hidden_layers} layers have FFN widths that are no multiple of "
        f"{rounding.ffn_multiple} (the first is layer {odd[0]} with {shape.layers[odd[0]].intermediate_size}); where a "
        f"target needs more than that they are padded with zeros below. Pruning with `--round-for {profile.rounding}` "
        "spends those channels on real ones."
    )


def _readme(source: Source, bundle: Bundle) -> str:
    profile = bundle.profile
    parts = []
    for choice, made in bundle.exports:
        checked = "compared with PyTorch: see its parity.json" if made.parity else f"not run here ({made.unverified})"
        parts.append(
            f"## {choice.folder} ({made.file_bytes / 2**20:,.1f} MiB, {checked})\n\n{choice.why}\n\n{choice.run}\n\n"
            f"More in {choice.folder}/README.md."
        )
    if bundle.left_out:
        parts.append(
            "## Left out\n\n" + "\n".join(f"- {choice.folder}: {reason}" for choice, reason in bundle.left_out)
        )
    return f"""# {model_label(source.name)} for {profile.name}

{profile.device}.

{profile.why} {_fit(source, profile)}

{(chr(10) * 2).join(parts)}
"""
