"""Loss curves that are kept between runs: a plan for another target needs nothing else of the model and text again.

A layer has one file, written as soon as it has its curves, so that a run that was ended goes on with the next; what it
loses without a whole sub-layer has another. Of an 8B model they take 12 MB in all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.models.sublayers import KINDS
from prunekit.plan.shape import Kind
from prunekit.pruning.curves.loss_curves import FfnCurve, HeadChoice, LayerCurves
from prunekit.utils.files.cache import read_kept, write_kept
from prunekit.utils.process.ranks import in_order, shared, size

VERSION = 1

Removed = dict[Kind, float]
"""Nats a token that a layer loses with its whole attention or FFN."""


@dataclass(frozen=True)
class CurveStore:
    """Keeps, for every layer, its curves brought to scale, and what is lost without a whole sub-layer. ``folder`` is of
    one model, text and precision; None keeps nothing. Only rank 0 has one, whose curves :func:`from_first_rank` gives
    to all."""

    folder: Path | None

    def curves(self, index: int) -> LayerCurves | None:
        """The curves of layer ``index``; None where there are none, or they are not as they were written."""
        data = self._read("layer", index)
        try:
            return None if data is None else _decode(data)
        except (KeyError, ValueError, TypeError):
            return None

    def keep(self, index: int, curves: LayerCurves) -> None:
        self._write("layer", index, _encode(curves))

    def removed(self, index: int) -> Removed:
        """What was measured so far of layer ``index``."""
        data = self._read("removed", index) or {}
        return {kind: data[kind] for kind in KINDS if isinstance(data.get(kind), float)}

    def keep_removed(self, index: int, removed: Removed) -> None:
        self._write("removed", index, {str(kind): loss for kind, loss in removed.items()})

    def _read(self, what: str, index: int) -> dict[str, Any] | None:
        data = None if self.folder is None else read_kept(self.folder / f"{what}-{index}.json")
        return data if data is not None and data.get("version") == VERSION else None

    def _write(self, what: str, index: int, data: dict[str, Any]) -> None:
        if self.folder is not None:
            write_kept(self.folder / f"{what}-{index}.json", {"version": VERSION, **data})


def from_first_rank(known: list[LayerCurves | None]) -> list[LayerCurves | None]:
    """What rank 0 knows of each layer, on all ranks."""
    if size() == 1:
        return known
    told = shared([None if each is None else _encode(each) for each in known])
    return [None if each is None else _decode(each) for each in told]


def of_all_ranks(mine: list[LayerCurves], layers: int) -> list[LayerCurves]:
    """The curves of all ``layers``; ``mine`` are those of this rank's share."""
    return mine if size() == 1 else [*map(_decode, in_order([*map(_encode, mine)], layers))]


def _encode(curves: LayerCurves) -> dict[str, Any]:
    heads = [
        [kv, group, list(choice.kv_heads), list(choice.query_heads), choice.loss]
        for (kv, group), choice in curves.heads.items()
    ]
    alone = {str(kind): list(each) for kind, each in curves.alone.items()}
    return {"order": list(curves.ffn.order), "loss": list(curves.ffn.loss), "heads": heads, "alone": alone}


def _decode(data: dict[str, Any]) -> LayerCurves:
    heads = {
        (int(kv), int(group)): HeadChoice(tuple(kv_heads), tuple(query), float(loss))
        for kv, group, kv_heads, query, loss in data["heads"]
    }
    # Earlier versions kept no such measurements: widths need none.
    told = data.get("alone", {})
    alone = {kind: tuple(map(float, told[kind])) for kind in KINDS if kind in told}
    return LayerCurves(FfnCurve(tuple(data["order"]), tuple(data["loss"])), heads, alone)
