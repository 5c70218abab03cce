"""One GGUF file from a checkpoint, a tensor at a time, and its weights back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

from prunekit.errors import PrunekitError
from prunekit.export.base import Job
from prunekit.export.gguf_architectures import (
    Architecture,
    Entry,
    Rotation,
    architecture_of,
    entries,
    rotation_of,
    window_of,
    windowed_layers,
)
from prunekit.export.gguf_quantize import FILE_TYPES
from prunekit.export.gguf_runner import CONTEXT_KEY
from prunekit.export.gguf_vocab import Vocabulary, write_vocabulary
from prunekit.model_folder import read_tensors
from prunekit.plan import LayerKeep
from prunekit.progress import progress
from prunekit.provenance import model_label
from prunekit.shape import LayerShape, ModelShape
from prunekit.slicing import LayerSlicer
from prunekit.source import Source

if TYPE_CHECKING:
    import torch

_WINDOWS = ("gemma2", "gemma3")


def write_file(
    job: Job, source: Source, file: Path, words: Vocabulary, dtype: str, *, announced: str | None = None
) -> None:
    """Write ``source`` (the job's, or its uniform twin) in ``dtype``, one of f32, f16, bf16 and q8_0.

    Matrices get that type (where q8_0's blocks of 32 don't fit a row, f16, as llama.cpp's quantiser does), everything
    else float32. Raises PrunekitError where a weight is too large for float16, or the tensors are not the family's.
    """
    from gguf import GGUFWriter

    made = architecture_of(source, job.context_length)
    rotation = rotation_of(source)
    writer = GGUFWriter(file, made.name)
    _write_keys(writer, job, source, made, rotation, FILE_TYPES[announced or dtype])
    write_vocabulary(writer, words)
    extra = _rotation_tensors(source, rotation)
    todo = list(entries(source.family, source.shape, made))
    with _Tensors(source) as tensors:
        tensors.check(todo)
        for name, values in extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        for entry in todo:
            shape = tensors.shape(entry)
            kind = _type_of(entry.name, shape, dtype)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.float32), _size(shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extra.values():
            writer.write_tensor_data(values)
        with progress("Writing GGUF", len(todo)) as advance:
            for entry in todo:
                kind = _type_of(entry.name, tensors.shape(entry), dtype)
                writer.write_tensor_data(_encode(entry.name, entry.make(tensors.parts(entry)), kind))
                advance()
    writer.close()


def _write_keys(writer: Any, job: Job, source: Source, made: Architecture, rotation: Rotation, file_type: int) -> None:
    config, shape = source.config, source.shape
    arch = made.name
    writer.add_type("model")
    writer.add_name(model_label(job.source.name))
    writer.add_quantization_version(2)
    writer.add_file_type(file_type)
    limits = [job.options.context_length or int(getattr(config, "max_position_embeddings", 0) or job.context_length)]
    limits += [limit for limit in (rotation.context,) if limit is not None]
    window = window_of(source)
    if window is not None and arch not in _WINDOWS:
        limits.append(window)
    writer.add_context_length(min(limits))
    writer.add_uint32(CONTEXT_KEY, job.context_length)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    heads = [layer.num_attention_heads for layer in shape.layers]
    kv_heads = [layer.num_key_value_heads for layer in shape.layers]
    ffn = [layer.intermediate_size for layer in shape.layers]
    uniform = shape.is_uniform
    writer.add_head_count(heads[0] if uniform else heads)
    writer.add_head_count_kv(kv_heads[0] if uniform else kv_heads)
    writer.add_feed_forward_length(ffn[0] if uniform else ffn)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _write_rotation(writer, rotation, arch)
    if arch in _WINDOWS:
        _write_gemma(writer, source, window)


def _write_rotation(writer: Any, rotation: Rotation, arch: str) -> None:
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rotation.dimensions)
    writer.add_rope_freq_base(rotation.base)
    if rotation.window_base is not None:
        writer.add_rope_freq_base_swa(rotation.window_base)
    if rotation.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rotation.kind))
        writer.add_rope_scaling_factor(rotation.factor)
    if rotation.kind == "yarn":
        writer.add_rope_scaling_yarn_beta_fast(rotation.beta_fast)
        writer.add_rope_scaling_yarn_beta_slow(rotation.beta_slow)
    if rotation.original is not None:
        writer.add_rope_scaling_orig_ctx_len(rotation.original)
    if rotation.attention != 1.0:
        writer.add_rope_scaling_attn_factors(rotation.attention)


def _write_gemma(writer: Any, source: Source, window: int | None) -> None:
    config = source.config
    for name, add in (
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
    ):
        value = getattr(config, name, None)
        if value:
            add(float(value))
    writer.add_sliding_window(int(window or config.max_position_embeddings))
    writer.add_sliding_window_pattern(windowed_layers(source))


def _rotation_tensors(source: Source, rotation: Rotation) -> dict[str, Any]:
    if rotation.factors is None:
        return {}
    factors = np.asarray(rotation.factors, dtype=np.float32)
    if source.family.model_type == "phi3":
        return {"rope_factors_long.weight": factors, "rope_factors_short.weight": factors}
    return {"rope_freqs.weight": factors}


class _Tensors:
    """The tensors of a checkpoint by their full names, read one at a time."""

    def __init__(self, source: Source):
        stored = read_tensors(source.path)
        prefix = "" if any(name.startswith("model.") for name in stored) else "model."
        self._stored = {name if name == "lm_head.weight" else prefix + name: (name, it) for name, it in stored.items()}
        self._tied = source.shape.tie_word_embeddings
        self._name = source.name
        self._open: dict[Path, Any] = {}

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *raised: object) -> None:
        self._open.clear()

    def check(self, todo: Sequence[Entry]) -> None:
        """Raises PrunekitError where a tensor is missing, or one is left that the file would not hold."""
        wanted = {part for entry in todo for part in entry.parts}
        if missing := sorted(wanted - set(self._stored)):
            raise PrunekitError(f"{self._name} lacks the weight {missing[0]}; finish the download, or make it again.")
        ignored = {"lm_head.weight"} if self._tied else set()
        left = sorted(name for name in set(self._stored) - wanted - ignored if not name.endswith("rotary_emb.inv_freq"))
        if left:
            raise PrunekitError(
                f"{self._name} has the weight {left[0]}, which llama.cpp's architecture has not; export it to onnx."
            )

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """Parts lie one above the other."""
        shapes = [self._stored[part][1].shape for part in entry.parts]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def parts(self, entry: Entry) -> list[torch.Tensor]:
        made = []
        for part in entry.parts:
            name, stored = self._stored[part]
            if stored.file not in self._open:
                self._open = {stored.file: safe_open(stored.file, "pt")}
            made.append(self._open[stored.file].get_tensor(name))
        return made


def _type_of(name: str, shape: tuple[int, ...], dtype: str) -> Any:
    from gguf import GGMLQuantizationType as Type

    if len(shape) < 2 or not name.endswith(".weight"):
        return Type.F32
    if dtype == "q8_0" and shape[-1] % 32:
        return Type.F16
    return Type[dtype.upper()]


def _size(shape: tuple[int, ...], kind: Any) -> int:
    from gguf import GGML_QUANT_SIZES

    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape)) // block * size


def _encode(name: str, tensor: torch.Tensor, kind: Any) -> Any:
    from gguf import quants

    # Rows at a time: the quantiser of the gguf package makes several copies of what it is given.
    values = tensor.float().contiguous().numpy()
    if kind.name == "F16" and float(np.abs(values).max(initial=0)) > 65504:
        raise PrunekitError(f"{name} holds numbers too large for float16; take bf16 or f32 instead.")
    return np.ascontiguousarray(quants.quantize(values, kind))


def stored(job: Job, file: Path) -> dict[str, torch.Tensor]:
    """The weights of ``file`` in float32, by transformers' names and with the checkpoint's widths."""
    import torch
    from gguf import GGUFReader, quants

    source = job.source
    reader = GGUFReader(file)
    found = {tensor.name: tensor for tensor in reader.tensors}
    made = architecture_of(source, job.context_length)
    shape = source.shape
    if made.twin:
        shape = _twin_shape(reader, made.name, shape)
    weights: dict[str, torch.Tensor] = {}
    for entry in entries(source.family, shape, made):
        tensor = found[entry.name]
        values = torch.from_numpy(np.array(quants.dequantize(tensor.data, tensor.tensor_type)))
        for name, part in zip(entry.parts, entry.split(values), strict=True):
            weights[name] = _cut(source, shape, name, part) if made.twin else part
    if shape.tie_word_embeddings:
        # The head is the same tensor under a second name.
        weights.pop("lm_head.weight", None)
    return weights


def _twin_shape(reader: Any, arch: str, shape: ModelShape) -> ModelShape:
    counts = (
        int(reader.fields[f"{arch}.{key}"].contents())
        for key in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    )
    return shape.with_layers([LayerShape(*counts)] * shape.num_hidden_layers)


def _cut(source: Source, twin: ModelShape, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A weight of the twin, cut back to what the checkpoint has of it."""
    parts = name.split(".", 3)
    if parts[:2] != ["model", "layers"]:
        return tensor
    index = int(parts[2])
    own, wide = source.shape.layers[index], twin.layers[index]
    heads = tuple(
        kv * wide.group_size + head for kv in range(own.num_key_value_heads) for head in range(own.group_size)
    )
    keep = LayerKeep(index, tuple(range(own.num_key_value_heads)), heads, tuple(range(own.intermediate_size)))
    return LayerSlicer(source.family, replace(twin), keep)(parts[3], tensor)
