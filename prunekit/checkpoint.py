"""Rebuild: from a source checkpoint and a Plan to an ordinary Hugging Face checkpoint, one shard at a time."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunekit.card import model_card
from prunekit.errors import PrunekitError
from prunekit.files import new_folder, read_json, sha256
from prunekit.manifest import MANIFEST, MANIFEST_VERSION
from prunekit.modeling import model_code, pruned_config, stock_config
from prunekit.plan import Plan
from prunekit.progress import progress
from prunekit.provenance import model_label, versions
from prunekit.shape import LayerShape
from prunekit.slicing import LayerSlicer

if TYPE_CHECKING:
    from prunekit.source import Source

Layout = Literal["per-layer", "uniform"]

_LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.(.+)")
# Data that belongs to the tokenizer and the generation defaults; code is never copied.
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Written:
    """What a rebuild wrote."""

    path: Path
    layout: Layout
    architecture: str
    parameters: int
    weight_bytes: int


def rebuild(
    source: Source,
    plan: Plan,
    out: Path,
    *,
    layout: Layout = "per-layer",
    dtype: str = "auto",
    ffn_multiple: int = 1,
    overwrite: bool = False,
    max_shard_bytes: int = 2 * 2**30,
) -> Written:
    """Apply ``plan`` to ``source`` and write the checkpoint ``out``, atomically.

    ``per-layer`` gives every layer its own width (and falls back to the plain stock architecture where all layers came
    out alike); ``uniform`` pads every layer with zeros to the widest, which any stock runtime loads and which gains
    nothing. Both pad FFNs with zero channels up to ``ffn_multiple``: a channel of act(0) · 0 adds nothing.
    Raises PrunekitError where the plan was made of another model, or the checkpoint can't be written.
    """
    _check_match(source, plan)
    if dtype != "auto" and dtype not in _DTYPES:
        raise PrunekitError(f"The stored dtype must be auto, {', '.join(_DTYPES)}; got {dtype!r}.")
    if ffn_multiple < 1:
        raise PrunekitError(f"FFNs are padded to a multiple of at least 1, got {ffn_multiple}.")
    config, target = _configuration(source, plan, layout, ffn_multiple)
    tensors = _TensorCutter(source, plan, target, _DTYPES.get(dtype))
    with new_folder(out, overwrite) as folder:
        try:
            total = _write_shards(folder, tensors, max_shard_bytes)
        except SafetensorError as error:
            raise PrunekitError(
                f"The weights could not be written to {out} ({error}). Free some space or choose another place; "
                "nothing was left behind."
            ) from None
        copy_tokenizer(source.path, folder)
        plan.save(folder / "plan.json")
        config.dtype = str(tensors.dtype or source.dtype).removeprefix("torch.")
        written = Written(out, layout, config.architectures[0], tensors.parameters, total)
        (folder / "README.md").write_text(model_card(model_label(source.name), plan, written), encoding="utf-8")
        if config.model_type == source.family.pruned_model_type:
            for file in model_code(source.family):
                shutil.copyfile(file, folder / file.name)
        # What makes a folder look like a model comes last.
        config.save_pretrained(folder)
        _write_manifest(folder, source, plan, written)
    return written


def _check_match(source: Source, plan: Plan) -> None:
    if plan.source != source.shape:
        raise PrunekitError(
            f"The plan was made of a model of another shape ({plan.source.num_hidden_layers} layers, "
            f"{plan.source.parameters:,} parameters) than {source.name} ({source.shape.num_hidden_layers} layers, "
            f"{source.shape.parameters:,} parameters). Give the model it was made of, or make a new plan."
        )
    made_of = plan.provenance.get("model", {})
    stated = made_of.get("fingerprint") if isinstance(made_of, dict) else None
    if stated and stated != source.fingerprint:
        raise PrunekitError(
            f"The plan was made of {made_of.get('name')!r}, whose weights differ from those of {source.name}. Give "
            "that model, or make a new plan."
        )


def widest(plan: Plan) -> LayerShape:
    """The shape of every layer of the uniform twin: the largest group size, KV heads and FFN width of any layer."""
    shapes = plan.shape.layers
    group = max(shape.group_size for shape in shapes)
    kv = max(shape.num_key_value_heads for shape in shapes)
    return LayerShape(group * kv, kv, max(shape.intermediate_size for shape in shapes))


def padded(shape: LayerShape, ffn_multiple: int) -> LayerShape:
    """``shape`` with its FFN width rounded up."""
    return replace(shape, intermediate_size=-(-shape.intermediate_size // ffn_multiple) * ffn_multiple)


def _configuration(
    source: Source, plan: Plan, layout: Layout, ffn_multiple: int
) -> tuple[Any, Callable[[int], LayerShape]]:
    """The config to write, and the shape that each kept layer (by its place) gets in it."""
    kept = [layer.index for layer in plan.layers]
    shapes = [padded(shape, ffn_multiple) for shape in plan.shape.layers]
    if layout == "uniform":
        shape = padded(widest(plan), ffn_multiple)
        try:
            return stock_config(source.family, source.config, shape, kept), lambda place: shape
        except PrunekitError:
            # Some stock configs refuse head counts that don't divide hidden_size; the dense model's own they must take.
            fields = source.config.to_dict()
            dense = LayerShape(fields["num_attention_heads"], fields["num_key_value_heads"], shape.intermediate_size)
        return stock_config(source.family, source.config, dense, kept), lambda place: dense
    if layout != "per-layer":
        raise PrunekitError(f"The layout must be per-layer or uniform, got {layout!r}.")
    if len(set(shapes)) == 1:
        try:
            return stock_config(source.family, source.config, shapes[0], kept), lambda place: shapes[place]
        except PrunekitError:
            # Some stock configs refuse head counts that don't divide hidden_size; the per-layer class takes them.
            pass
    return pruned_config(source.family, source.config, shapes, kept), lambda place: shapes[place]


class _TensorCutter:
    """Iterates over the tensors of the new checkpoint, reading the source's one at a time."""

    def __init__(self, source: Source, plan: Plan, target: Callable[[int], LayerShape], dtype: torch.dtype | None):
        self.dtype = dtype
        self.parameters = 0
        self._files = source.weight_files()
        self._tied = source.shape.tie_word_embeddings
        self._places = {layer.index: place for place, layer in enumerate(plan.layers)}
        self._slicers = {
            layer.index: LayerSlicer(source.family, source.shape, layer, target(place))
            for place, layer in enumerate(plan.layers)
        }
        names: list[str] = []
        for file in self._files:
            with safe_open(file, "pt") as handle:
                names += handle.keys()
        self.count = len(names)
        # A decoder that was saved without its head leaves the prefix out.
        self._prefix = "" if any(name.startswith("model.") for name in names) else "model."

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for file in self._files:
            with safe_open(file, "pt") as handle:
                for name in sorted(handle.keys(), key=_natural):
                    full = name if name == "lm_head.weight" else self._prefix + name
                    if (renamed := self._rename(full)) is None:
                        continue
                    tensor = handle.get_tensor(name)
                    if match := _LAYER.fullmatch(full):
                        tensor = self._slicers[int(match[1])](match[2], tensor)
                    if self.dtype is not None and tensor.is_floating_point():
                        tensor = self._convert(name, tensor, self.dtype)
                    self.parameters += tensor.numel()
                    yield renamed, tensor.contiguous()

    @staticmethod
    def _convert(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        new = tensor.to(dtype)
        # Only float16 has a smaller range than what models are stored in.
        if dtype == torch.float16 and not torch.isfinite(new).all():
            raise PrunekitError(f"{name} holds numbers too large for float16; store bfloat16 or float32 instead.")
        return new

    def _rename(self, name: str) -> str | None:
        if match := _LAYER.fullmatch(name):
            place = self._places.get(int(match[1]))
            return None if place is None else f"model.layers.{place}.{match[2]}"
        # A tied head is the embedding table under a second name; saving both would double it.
        return None if self._tied and name == "lm_head.weight" else name


def _natural(name: str) -> list[int | str]:
    # Every second part is a number. A stranger's names may hold digits that int() refuses, or thousands of them.
    parts = re.split(r"([0-9]{1,9})", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def _write_shards(folder: Path, tensors: _TensorCutter, max_bytes: int) -> int:
    """Write the tensors in shards of at most ``max_bytes`` (a larger tensor has one to itself). Returns their bytes."""
    shards: list[tuple[Path, list[str]]] = []
    held: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal held, size
        if held:
            path = folder / f"shard-{len(shards)}.safetensors"
            save_file(held, path, metadata={"format": "pt"})
            shards.append((path, list(held)))
            held, size = {}, 0

    with progress("Rebuilding", tensors.count) as advance:
        for name, tensor in tensors:
            bytes_ = tensor.numel() * tensor.element_size()
            if size + bytes_ > max_bytes:
                flush()
            held[name] = tensor
            size += bytes_
            total += bytes_
            advance()
        flush()
    if len(shards) == 1:
        shards[0][0].rename(folder / "model.safetensors")
        return total
    weight_map = {}
    for place, (path, names) in enumerate(shards, start=1):
        final = f"model-{place:05d}-of-{len(shards):05d}.safetensors"
        path.rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True), encoding="utf-8")
    return total


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files and the generation defaults of ``source`` that are data; code is left behind."""
    for name in _COPIED:
        file = source / name
        if not file.is_file():
            continue
        if name == "tokenizer_config.json":
            # A tokenizer class of the source's own code would not come along, and must not be asked for.
            settings = read_json(file, "tokenizer's config")
            if not isinstance(settings, dict):
                raise PrunekitError(f"{file} is no JSON object; copy the original model's tokenizer files over it.")
            settings.pop("auto_map", None)
            (folder / name).write_text(json.dumps(settings, indent=1, ensure_ascii=False), encoding="utf-8")
        else:
            shutil.copyfile(file, folder / name)


def _write_manifest(folder: Path, source: Source, plan: Plan, written: Written) -> None:
    manifest = {
        "format": "prunekit-checkpoint",
        "version": MANIFEST_VERSION,
        "layout": written.layout,
        "architecture": written.architecture,
        "parameters": written.parameters,
        "share_of_blocks": round(plan.share_of_blocks, 6),
        "share_of_parameters": round(plan.share_of_parameters, 6),
        "source": {"name": model_label(source.name), "family": source.family.name, "fingerprint": source.fingerprint},
        "versions": versions(),
        "files": {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file()},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
