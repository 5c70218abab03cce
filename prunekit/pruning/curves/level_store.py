"""Level database: the output projection of every sub-layer at a few widths each, solved anew, on disk.

A level is a number of FFN channels, or of KV groups and query heads in each. Its projection keeps the dense shape, with
zeros where units have gone, so that a candidate is put together by exchanging matrices in the dense model. Files are
memory-mapped: of a large model only what is looked at comes into memory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunekit.errors import PrunekitError
from prunekit.models.sublayers import KINDS, Kind
from prunekit.plan.shape import Heads, LayerShape
from prunekit.pruning.curves.loss_curves import NONE, FfnCurve, HeadChoice, LayerCurves
from prunekit.utils.files.cache import tensors_digest
from prunekit.utils.files.leftovers import temporary_folder
from prunekit.utils.files.private_folder import clear
from prunekit.utils.numerics.finite import check_computed

VERSION = 4

Candidate = tuple[tuple[Heads, int], ...]
"""For every layer its (KV heads, query heads a group) and its FFN width, all of them levels, or (0, 0) and 0 where
nothing is left."""


def level_name(kind: Kind, what: Heads | int) -> str:
    """The name of a level in its layer's file: ``ffn.1024`` or ``attention.2.3`` (KV heads, query heads a group)."""
    return f"{kind}.{what}" if isinstance(what, int) else f"{kind}.{what[0]}.{what[1]}"


@dataclass(frozen=True)
class Levels:
    """A level database in ``folder``: ``curves`` of every layer, and the widths that have a projection."""

    folder: Path
    curves: tuple[LayerCurves, ...]
    ffn: tuple[tuple[int, ...], ...]

    def projection(self, index: int, kind: Kind, what: Heads | int) -> torch.Tensor:
        """The output projection [d, n] of a level. Raises PrunekitError where the file is damaged."""
        file = _file(self.folder, index)
        try:
            with safe_open(file, "pt") as handle:
                tensor: torch.Tensor = handle.get_tensor(level_name(kind, what))
                return tensor
        except (OSError, SafetensorError) as error:
            raise PrunekitError(f"{file} is damaged ({error}); delete its folder and plan again.") from None


def _file(folder: Path, index: int) -> Path:
    return folder / f"layer-{index}.safetensors"


def write_levels(
    folder: Path, index: int, curves: LayerCurves, projections: dict[str, torch.Tensor], dtype: torch.dtype
) -> None:
    """One layer's projections and curves, each file renamed into place once it is whole. Raises PrunekitError where
    one is not finite, or the disk refuses."""
    held = {name: projections[name].to(dtype).contiguous().cpu() for name in sorted(projections)}
    for name, tensor in held.items():
        check_computed(tensor, index, f"the weights that were solved for {name}")
    said = json.dumps(_encode(curves))
    digest = tensors_digest(held.items(), folder.name, str(index), said)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Another process may be making the same levels.
        with temporary_folder(_file(folder, index).name, folder) as beside:
            whole = beside / "levels"
            save_file(held, whole, metadata={"curves": said, "version": str(VERSION), "sha256": digest})
            whole.replace(_file(folder, index))
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from None


def _unwritable(folder: Path, error: Exception) -> PrunekitError:
    return PrunekitError(
        f"The level database could not be written to {folder}: {error}. Free some space, or name a folder on "
        "another disk in the environment variable PRUNEKIT_CACHE."
    )


@contextmanager
def room(folder: Path, count: int) -> Iterator[Levels | None]:
    """Room for the database of a model with ``count`` layers, which no other process makes while the block runs.
    Yields what another has made meanwhile; else what was damaged is taken away. Raises PrunekitError where it can't be
    written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        lock.acquire()
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        kept = read_levels(folder, count)
        try:
            for index in range(count) if kept is None else ():
                clear(_file(folder, index))
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield kept
    finally:
        lock.release()


def read_levels(folder: Path, count: int) -> Levels | None:
    """The database of a model with ``count`` layers, or None where it is not whole, or a bit of it is not as it was
    written. Reads all of it once."""
    curves, widths = [], []
    for index in range(count):
        file = _file(folder, index)
        try:
            if not file.is_file():
                return None
            with safe_open(file, "pt") as handle:
                said = handle.metadata() or {}
                if said.get("version") != str(VERSION):
                    return None
                names = sorted(handle.keys())
                tensors = ((name, handle.get_tensor(name)) for name in names)
                if said["sha256"] != tensors_digest(tensors, folder.name, str(index), said["curves"]):
                    return None
                curves.append(_decode(json.loads(said["curves"])))
                widths.append(_ffn_levels(names))
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
            return None
    return Levels(folder, tuple(curves), tuple(widths))


def _ffn_levels(names: Iterable[str]) -> tuple[int, ...]:
    return tuple(sorted(int(name.removeprefix("ffn.")) for name in names if name.startswith("ffn.")))


def _encode(curves: LayerCurves) -> dict[str, Any]:
    heads = [
        [kv, group, list(choice.kv_heads), list(choice.query_heads), choice.loss]
        for (kv, group), choice in curves.heads.items()
    ]
    return {"order": list(curves.ffn.order), "loss": list(curves.ffn.loss), "heads": heads}


def _decode(data: dict[str, Any]) -> LayerCurves:
    heads = {
        (int(kv), int(group)): HeadChoice(tuple(kv_heads), tuple(query), float(loss))
        for kv, group, kv_heads, query, loss in data["heads"]
    }
    return LayerCurves(FfnCurve(tuple(data["order"]), tuple(data["loss"])), heads)


class Stitched:
    """The dense model with levels in place of its output projections; ``set`` exchanges only what differs.

    ``projections`` gives these.
    """

    def __init__(
        self,
        levels: Levels,
        dense: Sequence[LayerShape],
        projections: Callable[[int, Kind], Any],
    ):
        self._levels, self._dense, self._projection = levels, dense, projections
        self._original = {
            (index, kind): projections(index, kind).weight.data for index in range(len(dense)) for kind in KINDS
        }
        self._biases = {key: None if (bias := projections(*key).bias) is None else bias.data for key in self._original}
        self.now: Candidate = tuple(_whole(layer) for layer in dense)

    def set(self, wanted: Candidate) -> None:
        """Put the levels of every layer in place."""
        for index, (old, new) in enumerate(zip(self.now, wanted, strict=True)):
            if old[0] != new[0]:
                self._put(index, "attention", new[0])
            if old[1] != new[1]:
                self._put(index, "ffn", new[1])
        self.now = wanted

    def _put(self, index: int, kind: Kind, what: Heads | int) -> None:
        original = self._original[index, kind]
        heads, width = _whole(self._dense[index])
        projection = self._projection(index, kind)
        gone = what in (0, NONE)
        if gone:
            projection.weight.data = torch.zeros_like(original)
        elif what == (width if kind == "ffn" else heads):
            projection.weight.data = original
        else:
            projection.weight.data = self._levels.projection(index, kind, what).to(original)
        if (bias := self._biases[index, kind]) is not None:
            projection.bias.data = torch.zeros_like(bias) if gone else bias

    def restore(self) -> None:
        self.set(tuple(_whole(layer) for layer in self._dense))


def _whole(layer: LayerShape) -> tuple[Heads, int]:
    return (layer.num_key_value_heads, layer.group_size), layer.intermediate_size
