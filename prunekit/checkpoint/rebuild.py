"""Rebuild: from a source checkpoint and a Plan to an ordinary Hugging Face checkpoint, one shard at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunekit.checkpoint.card import model_card
from prunekit.checkpoint.layout import Layout, configuration, padded
from prunekit.checkpoint.manifest import Written, write_manifest
from prunekit.checkpoint.overrides import LAYER, Overrides
from prunekit.checkpoint.record import FIELD, pruning_record, read_record
from prunekit.errors import PrunekitError
from prunekit.models.origin import copy_legal_files, read_origin
from prunekit.models.slicing import LayerSlicer
from prunekit.models.tokenizer.files import copy_tokenizer
from prunekit.plan import Plan
from prunekit.plan.shape import LayerShape
from prunekit.utils.files.atomic import new_folder
from prunekit.utils.files.leftovers import output_of
from prunekit.utils.files.replacing import CHECKPOINT, local
from prunekit.utils.numerics.finite import check_made, check_weight, is_finite
from prunekit.utils.phases.titles import WRITING
from prunekit.utils.progress import progress
from prunekit.utils.provenance import model_label

if TYPE_CHECKING:
    from prunekit.models.source import Source

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def rebuild(
    source: Source,
    plan: Plan,
    out: Path,
    *,
    layout: Layout = "per-layer",
    dtype: str = "auto",
    ffn_multiple: int = 1,
    weights: Mapping[str, torch.Tensor] | None = None,
    overwrite: bool = False,
    max_shard_bytes: int = 2 * 2**30,
    beside: Callable[[Path], None] = lambda folder: None,
) -> Written:
    """Apply ``plan`` to ``source`` and write the checkpoint ``out``, atomically.

    ``per-layer`` gives every layer its own width (and falls back to the plain stock architecture where all layers came
    out alike); ``uniform`` pads every layer with zeros to the widest, which any stock runtime loads and which gains
    nothing. Both pad FFNs with zero channels up to ``ffn_multiple``: a channel of act(0) · 0 adds nothing.
    ``weights`` replace what slicing would give: tensors that are already cut to the plan's widths (units in rising
    order), by their names in ``source``, such as ``model.layers.3.mlp.down_proj.weight``, and such as no plan cuts.
    Output biases that the plan adds must be among them; the other biases that their config switch brings along are zero
    where not given. ``beside`` adds files of its own.
    Raises PrunekitError where the plan was made of another model, ``weights`` don't fit it, or the checkpoint can't be
    written.

    >>> rebuild(source, Plan.load("plan.json"), Path("smaller")).parameters  # doctest: +SKIP
    113000000
    """
    _check_match(source, plan)
    stored_dtype(dtype)
    if ffn_multiple < 1:
        raise PrunekitError(f"FFNs are padded to a multiple of at least 1, got {ffn_multiple}.")
    config, target = configuration(source, plan, layout, ffn_multiple)
    tensors = _TensorCutter(source, plan, target, stored_dtype(dtype), weights or {})
    return write_checkpoint(source, plan, config, tensors, out, layout, overwrite, max_shard_bytes, beside)


def cut_tensors(
    source: Source,
    plan: Plan,
    dtype: torch.dtype | None,
    weights: Mapping[str, torch.Tensor] | None = None,
    ffn_multiple: int = 1,
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that :func:`rebuild` would write of ``source`` in ``dtype`` (None: as stored), by their new names."""
    shapes = [padded(shape, ffn_multiple) for shape in plan.shape.layers]
    return iter(_TensorCutter(source, plan, lambda place: shapes[place], dtype, weights or {}))


class Tensors(Protocol):
    """The tensors of a new checkpoint, made one at a time: ``count`` of them at most, in ``dtype`` (None: as stored).
    ``parameters`` counts those that have been made so far."""

    dtype: torch.dtype | None
    count: int
    parameters: int

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]: ...


def write_checkpoint(
    source: Source,
    plan: Plan,
    config: Any,
    tensors: Tensors,
    out: Path,
    layout: Layout,
    overwrite: bool,
    max_shard_bytes: int,
    beside: Callable[[Path], None] = lambda folder: None,
) -> Written:
    """Write ``tensors`` and ``config`` with all that belongs beside them as the checkpoint ``out``, atomically.
    ``beside`` adds files of its own.

    Raises PrunekitError where it can't be written.
    """
    inputs = (*source.inputs, *local(plan.file))
    with new_folder(out, overwrite, kind=CHECKPOINT, inputs=inputs) as folder:
        # First, for it may be refused, and the weights take long.
        copy_tokenizer(source, folder, config=config)
        try:
            total = write_shards(folder, tensors, tensors.count, max_shard_bytes, WRITING)
        except SafetensorError as error:
            raise PrunekitError(
                f"The weights could not be written to {output_of(out)} ({error}). Free some space or choose another "
                "place; nothing was left behind."
            ) from None
        origin = read_origin(source.name, source.path)
        copy_legal_files(source.path, origin, folder)
        plan.save(folder / "plan.json")
        config.dtype = str(tensors.dtype or source.dtype).removeprefix("torch.")
        written = Written(out, layout, config.architectures[0], tensors.parameters, total)
        (folder / "README.md").write_text(
            model_card(_pruned_name(source, plan), plan, written, origin), encoding="utf-8"
        )
        if record := pruning_record(source, plan, layout, folder):
            setattr(config, FIELD, record)
        beside(folder)
        # What makes a folder look like a model comes last. The config of a per-layer model brings its code along.
        config.save_pretrained(folder)
        write_manifest(folder, source, plan, written)
    return written


def _pruned_name(source: Source, plan: Plan) -> str:
    """What the dense model is called that ``plan`` is about: a training's source is the pruned one."""
    record = read_record(source.config) if plan.provenance.get("recovery") else None
    return record.source if record else model_label(source.name)


def stored_dtype(name: str) -> torch.dtype | None:
    """The dtype that weights are to be stored in, None for ``auto``. Raises PrunekitError for any other name."""
    if name != "auto" and name not in _DTYPES:
        raise PrunekitError(f"The stored dtype must be auto, {', '.join(_DTYPES)}; got {name!r}.")
    return _DTYPES.get(name)


def converted(name: str, tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """``tensor`` in ``dtype``, if it holds floats. Raises PrunekitError where its numbers don't fit."""
    if dtype is None or not tensor.is_floating_point():
        return tensor
    new = tensor.to(dtype)
    # All 16-bit types end before what models are stored in does: the largest numbers of float32 round up to infinity.
    if dtype != tensor.dtype and is_finite(tensor) and not is_finite(new):
        others = " or ".join(each for each in ("bfloat16", "float32") if each != str(dtype).removeprefix("torch."))
        raise PrunekitError(
            f"{name} holds numbers too large for {str(dtype).removeprefix('torch.')}; store {others} instead."
        )
    return new


def _check_match(source: Source, plan: Plan) -> None:
    source.check_language_model()
    if plan.shape.hidden_size != source.shape.hidden_size:
        raise PrunekitError(
            "The plan tells of a model whose hidden states were rotated, which no plan can do again; prune with "
            "--method slicegpt instead."
        )
    if plan.source != source.shape:
        raise PrunekitError(
            f"The plan was made of a model of another shape ({plan.source.num_hidden_layers} layers, "
            f"{plan.source.parameters:,} parameters) than {source.name} ({source.shape.num_hidden_layers} layers, "
            f"{source.shape.parameters:,} parameters). Give the model it was made of, or make a new plan."
        )
    made_of = plan.provenance.get("model", {})
    stated = made_of.get("fingerprint") if isinstance(made_of, dict) else None
    if stated and not source.is_named_by(stated):
        raise PrunekitError(
            f"The plan was made of {made_of.get('name')!r}, whose weights differ from those of {source.name}. Give "
            "that model, or make a new plan."
        )


class _TensorCutter:
    """Iterates over the tensors of the new checkpoint, reading the source's one at a time."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        target: Callable[[int], LayerShape],
        dtype: torch.dtype | None,
        weights: Mapping[str, torch.Tensor],
    ):
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
        # A decoder that was saved without its head leaves the prefix out.
        self._prefix = "" if any(name.startswith("model.") for name in names) else "model."
        self._overrides = Overrides(source.family, plan, target, weights, {self._full(name) for name in names})
        self._stored = source.dtype
        self.count = len(names) + self._overrides.count

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for file in self._files:
            with safe_open(file, "pt") as handle:
                for name in sorted(handle.keys(), key=natural):
                    full = self._full(name)
                    tensor = handle.get_tensor(name)
                    check_weight(full, tensor)
                    if (renamed := self._rename(full)) is None:
                        continue
                    stored = self.dtype or tensor.dtype
                    if (replaced := self._overrides.replaced(full, tensor)) is not None:
                        tensor = replaced
                    elif match := LAYER.fullmatch(full):
                        tensor = self._slicers[int(match[1])](match[2], tensor)
                    yield renamed, self._finished(name, tensor, stored)
        for name, tensor in self._overrides.added():
            yield self._rename(name) or name, self._finished(name, tensor, self.dtype or self._stored)

    def _full(self, name: str) -> str:
        return name if name == "lm_head.weight" else self._prefix + name

    def _finished(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        tensor = converted(name, tensor, dtype)
        self.parameters += tensor.numel()
        return tensor.contiguous()

    def _rename(self, name: str) -> str | None:
        if match := LAYER.fullmatch(name):
            place = self._places.get(int(match[1]))
            if place is not None and not self._slicers[int(match[1])].keeps(match[2]):
                return None
            return None if place is None else f"model.layers.{place}.{match[2]}"
        # A tied head is the embedding table under a second name; saving both would double it.
        return None if self._tied and name == "lm_head.weight" else name


def natural(name: str) -> list[int | str]:
    """A sorting key in which layer 2 comes before layer 10."""
    # Every second part is a number. A stranger's names may hold digits that int() refuses, or thousands of them.
    parts = re.split(r"([0-9]{1,9})", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)]


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], count: int, max_bytes: int, title: str
) -> int:
    """Write ``tensors``, at most ``count``, by their names in shards of at most ``max_bytes`` (a larger tensor has one
    to itself), with their index. Returns their bytes. ``title`` is what its progress is called. Raises PrunekitError
    where one is not finite."""
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

    with progress(title, count) as advance:
        for name, tensor in tensors:
            check_made(name, tensor)
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
