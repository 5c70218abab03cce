"""One GGUF file from a checkpoint, a tensor at a time, and its weights back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prunekit.checkpoint.manifest import MANIFEST
from prunekit.errors import PrunekitError
from prunekit.export.formats.gguf.architectures import (
    WINDOWED,
    architecture_of,
    window_of,
    windowed_layers,
)
from prunekit.export.formats.gguf.quantize import FILE_TYPES
from prunekit.export.formats.gguf.rope import Rotation, rotation_of
from prunekit.export.formats.gguf.runner import CONTEXT_KEY
from prunekit.export.formats.gguf.vocab import Vocabulary, write_sampling, write_vocabulary
from prunekit.export.target import Job
from prunekit.models.gguf.header import read_header
from prunekit.models.gguf.tensors import Architecture, Entry, entries
from prunekit.models.slicing import LayerSlicer
from prunekit.models.source import Source
from prunekit.models.stored.reading import StoredWeights
from prunekit.plan import LayerKeep
from prunekit.utils.files.atomic import read_json
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label, versions

if TYPE_CHECKING:
    import torch

# Values that are converted at a time: some hundred MB with all copies.
_CHUNK = 1 << 24


def write_file(
    job: Job, made: Architecture, file: Path, words: Vocabulary, dtype: str, *, announced: str | None = None
) -> None:
    """Write the job's model as ``made`` in ``dtype``, one of f32, f16, bf16 and q8_0, one tensor after another.

    Matrices get that type (where q8_0's blocks of 32 don't fit a row, f16, as llama.cpp's quantiser does), everything
    else float32. ``announced`` is the dtype that the file is said to have, where it is still to be quantised.
    Raises PrunekitError where a weight is too large for float16, or the tensors are not the family's.
    """
    from gguf import GGUFWriter

    source = job.source
    rotation = rotation_of(source)
    todo = list(entries(source.family, made))
    tensors = _Tensors(source, made)
    tensors.check(todo)
    with closing(GGUFWriter(file, made.name)) as writer:
        _write_keys(writer, job, made, rotation, FILE_TYPES[announced or dtype])
        write_sampling(writer, job.generation)
        write_vocabulary(writer, words)
        extra = _rotation_tensors(made, rotation)
        for name, values in extra.items():
            writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
        kinds = {}
        for entry in todo:
            shape = tensors.shape(entry)
            kinds[entry.name] = kind = _type_of(entry.name, shape, dtype)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.float32), _size(shape, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in extra.values():
            writer.write_tensor_data(values)
        with progress("Writing GGUF", len(todo)) as advance:
            for entry in todo:
                writer.write_tensor_data(_encode(entry.name, entry.make(tensors.parts(entry)), kinds[entry.name]))
                advance()


def _write_keys(writer: Any, job: Job, made: Architecture, rotation: Rotation, file_type: int) -> None:
    source, shape = job.source, made.shape
    config = source.config
    _write_origin(writer, job)
    writer.add_quantization_version(2)
    writer.add_file_type(file_type)
    limits = [job.options.context_length or int(getattr(config, "max_position_embeddings", 0) or job.context_length)]
    limits += [limit for limit in (rotation.context,) if limit is not None]
    window = window_of(source)
    if window is not None and made.name not in WINDOWED:
        limits.append(window)
    writer.add_context_length(min(limits))
    writer.add_uint32(CONTEXT_KEY, job.context_length)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    heads = [layer.num_attention_heads for layer in shape.layers]
    kv_heads = [layer.num_key_value_heads for layer in shape.layers]
    ffn = [layer.intermediate_size for layer in shape.layers]
    # Frontends that know only numbers here must be able to read what is the same in every layer.
    writer.add_head_count(heads[0] if shape.is_uniform else heads)
    writer.add_head_count_kv(kv_heads[0] if shape.is_uniform else kv_heads)
    writer.add_feed_forward_length(ffn[0] if shape.is_uniform else ffn)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    # Keys that gguf 0.17 has no function for are written by their names.
    _write_rotation(writer, rotation)
    if made.name in WINDOWED:
        _write_gemma(writer, source, window)


def _write_origin(writer: Any, job: Job) -> None:
    source = job.original or job.source
    writer.add_type("model")
    writer.add_name(model_label(source.name))
    writer.add_string("prunekit.version", versions()["prunekit"])
    manifest = source.path / MANIFEST
    if not manifest.is_file():
        return
    told = read_json(manifest, "manifest")
    dense = told.get("source") if isinstance(told, dict) else None
    name = dense.get("name") if isinstance(dense, dict) else None
    if isinstance(name, str) and name:
        organization, _, plain = name.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, plain)
        if organization:
            writer.add_base_model_organization(0, organization)


def _write_rotation(writer: Any, rotation: Rotation) -> None:
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rotation.dimensions)
    writer.add_rope_freq_base(rotation.base)
    if rotation.window_base is not None:
        writer.add_float32(f"{writer.arch}.rope.freq_base_swa", rotation.window_base)
    if rotation.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(rotation.kind))
        writer.add_rope_scaling_factor(rotation.factor)
    if rotation.kind == "yarn":
        writer.add_float32(f"{writer.arch}.rope.scaling.yarn_beta_fast", rotation.beta_fast)
        writer.add_float32(f"{writer.arch}.rope.scaling.yarn_beta_slow", rotation.beta_slow)
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
    writer.add_array(f"{writer.arch}.attention.sliding_window_pattern", windowed_layers(source))


def _rotation_tensors(made: Architecture, rotation: Rotation) -> dict[str, Any]:
    if rotation.factors is None:
        return {}
    factors = np.asarray(rotation.factors, dtype=np.float32)
    if made.name == "phi3":
        return {"rope_factors_long.weight": factors, "rope_factors_short.weight": factors}
    return {"rope_freqs.weight": factors}


class _Tensors:
    """The tensors of a checkpoint by their full names, read one at a time and padded to the widths of ``made``."""

    def __init__(self, source: Source, made: Architecture):
        self._stored = StoredWeights(source)
        self._tied = source.shape.tie_word_embeddings
        self._name = source.name
        self._pad = {
            index: LayerSlicer(source.family, source.shape, LayerKeep.everything(index, own), wide)
            for index, (own, wide) in enumerate(zip(source.shape.layers, made.shape.layers, strict=True))
            if own != wide
        }

    def check(self, todo: Sequence[Entry]) -> None:
        """Raises PrunekitError where a tensor is missing, or one is left that the file would not hold."""
        wanted, there = {part for entry in todo for part in entry.parts}, {*self._stored.names()}
        if missing := sorted(wanted - there):
            raise PrunekitError(f"{self._name} lacks the weight {missing[0]}; finish the download, or make it again.")
        ignored = {"lm_head.weight"} if self._tied else set()
        left = sorted(name for name in there - wanted - ignored if not name.endswith("rotary_emb.inv_freq"))
        if left:
            raise PrunekitError(
                f"{self._name} has the weight {left[0]}, which llama.cpp's architecture has not; export it to onnx."
            )

    def shape(self, entry: Entry) -> tuple[int, ...]:
        """The shape of what :meth:`parts` makes of an entry, without reading a weight."""
        import torch

        parts = [torch.empty(self._stored.shape(part), device="meta") for part in entry.parts]
        return tuple(entry.make([self._padded(*each) for each in zip(entry.parts, parts, strict=True)]).shape)

    def parts(self, entry: Entry) -> list[torch.Tensor]:
        return [self._padded(part, self._stored.read(part)) for part in entry.parts]

    def _padded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        index, rest = _layer_of(name)
        return self._pad[index](rest, tensor) if index in self._pad else tensor


def _layer_of(name: str) -> tuple[int | None, str]:
    parts = name.split(".", 3)
    return (int(parts[2]), parts[3]) if parts[:2] == ["model", "layers"] else (None, name)


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
    """The bytes of a tensor in ``kind``, some rows at a time: converting makes copies of what it is given."""
    from gguf import quants

    rows = max(1, _CHUNK // max(1, tensor[0].numel())) if tensor.ndim > 1 else max(1, len(tensor))
    made = []
    for chunk in tensor.split(rows):
        values = chunk.float().contiguous().numpy()
        if kind.name == "F16" and float(np.abs(values).max(initial=0)) > 65504:
            raise PrunekitError(f"{name} holds numbers too large for float16; take bf16 or f32 instead.")
        with np.errstate(over="ignore", invalid="ignore"):
            made.append(quants.quantize(values, kind))
            fits = True
            if kind.name not in ("F32", "F16") and len(values):
                # Where a block's scale (or its bfloat16) overflows at all, it does where the largest number is.
                row = int(np.abs(values).reshape(len(values), -1).max(-1).argmax())
                fits = bool(np.isfinite(quants.dequantize(made[-1][row : row + 1], kind)).all())
        if not fits:
            raise PrunekitError(f"{name} holds numbers too large for {kind.name.lower()}; take f32 instead.")
    return np.ascontiguousarray(made[0] if len(made) == 1 else np.concatenate(made))


class Stored(Mapping[str, "torch.Tensor"]):
    """The weights of a file in float32, by transformers' names and with the checkpoint's widths. Each is dequantised
    when it is asked for, so that only one is in memory. Tensors that the file holds in float32 are left out."""

    def __init__(self, job: Job, file: Path):
        self._source = job.source
        self._made = architecture_of(job.source, job.context_length)
        self._header = read_header(file)
        self._holders: dict[str, list[tuple[Entry, int]]] = {}
        for entry in entries(job.source.family, self._made):
            if entry.name not in self._header.tensors:
                raise PrunekitError(f"{file.name} lacks the tensor {entry.name}; export the model again.")
            if self._header.tensors[entry.name].kind != "F32":
                for place, part in enumerate(entry.parts):
                    self._holders.setdefault(part, []).append((entry, place))

    def __iter__(self) -> Iterator[str]:
        return iter(self._holders)

    def __len__(self) -> int:
        return len(self._holders)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch
        from gguf import GGMLQuantizationType, quants

        runs = []
        for entry, place in self._holders[name]:
            kind = GGMLQuantizationType[self._header.tensors[entry.name].kind]
            values = torch.from_numpy(np.array(quants.dequantize(self._header.data(entry.name), kind)))
            runs.append(entry.split(values)[place])
        return self._cut(name, runs[0] if len(runs) == 1 else torch.cat(runs))

    def _cut(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A weight of a twin, cut back to what the checkpoint has of it."""
        index, rest = _layer_of(name)
        if index is None or not self._made.twin:
            return tensor
        own, wide = self._source.shape.layers[index], self._made.shape.layers[index]
        heads = tuple(
            kv * wide.group_size + head for kv in range(own.num_key_value_heads) for head in range(own.group_size)
        )
        keep = LayerKeep(index, tuple(range(own.num_key_value_heads)), heads, tuple(range(own.intermediate_size)))
        return LayerSlicer(self._source.family, self._made.shape, keep)(rest, tensor)
