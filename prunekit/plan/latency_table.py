"""Latency table: what the sub-layers of one model take at every width, as measured on one machine. JSON on disk."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import PrunekitError
from prunekit.plan.budgets import LATENCY, Cost
from prunekit.plan.rounding import Rounding
from prunekit.plan.shape import LIMITS, Heads, LayerShape, ModelShape
from prunekit.utils.files.atomic import read_json, write_text
from prunekit.utils.timing import Summary

TABLE_VERSION = 1


@dataclass(frozen=True)
class LatencyTable:
    """Seconds that each sub-layer takes, its norms and its residual connection with it.

    ``attention[kind][heads]`` is by the kind of attention that a layer has (``kinds``, one a layer: full_attention or
    sliding_attention), ``ffn[width]`` of a grid of widths, ``rest`` what is outside the layers: embedding, masks,
    rotary embeddings, last norm, output head for one token a sequence. ``conditions`` and ``machine`` say how it was
    measured, ``model`` of which model, whose geometry is ``shape``.
    """

    model: str
    shape: ModelShape
    kinds: tuple[str, ...]
    attention: dict[str, dict[Heads, Summary]]
    ffn: dict[int, Summary]
    rest: Summary
    conditions: dict[str, Any]
    machine: dict[str, Any]

    def check(self, dense: ModelShape) -> None:
        """Raises PrunekitError where this is no table of models of shape ``dense``. Layers may be narrower than those
        it was measured for: the table then holds more than is needed."""
        mine, other = asdict(self.shape), asdict(dense)
        fields = [name for name in mine if name not in ("layers", "tie_word_embeddings") and mine[name] != other[name]]
        if fields:
            name = fields[0]
            difference = f"its {name} is {mine[name]}, here it is {other[name]}"
        elif len(self.shape.layers) != len(dense.layers):
            difference = f"it has {len(self.shape.layers)} layers, here there are {len(dense.layers)}"
        else:
            wider = [
                index
                for index, (had, has) in enumerate(zip(self.shape.layers, dense.layers, strict=True))
                if has.num_key_value_heads > had.num_key_value_heads
                or has.group_size > had.group_size
                or has.intermediate_size > had.intermediate_size
            ]
            if not wider:
                return
            difference = f"its layer {wider[0]} is {_words(self.shape, wider[0])}, here {_words(dense, wider[0])}"
        raise PrunekitError(
            f"The latency table was measured for {self.model}, which has another geometry ({difference}); measure one "
            "for this model with `prunekit latency-table`."
        )

    def cost(self) -> Cost:
        """The predicted latency in nanoseconds.

        FFN widths between those measured are interpolated on a curve that never falls: what noise made smaller at a
        larger width is averaged with its neighbours (isotonic regression). Below the smallest, its own time is
        taken; what is gone takes none.
        """
        widths = sorted(self.ffn)
        curve = isotonic([self.ffn[width].median for width in widths])
        times = np.rint(np.interp(np.arange(widths[-1] + 1), widths, np.array(curve) * 1e9)).astype(np.int64)
        heads = {
            kind: {what: _nanoseconds(summary) for what, summary in measured.items()}
            for kind, measured in self.attention.items()
        }

        def attention(index: int, what: Heads) -> int:
            if not what[0]:
                return 0
            if what not in (own := heads[self.kinds[index]]):
                raise PrunekitError(
                    f"The latency table has no time for {what[0]} KV heads of {what[1]} query heads each; "
                    "measure one of this model with `prunekit latency-table`."
                )
            return own[what]

        names = ("phase", "batch", "length", "dtype", "threads")
        facts = {name: self.conditions.get(name) for name in names}
        facts |= {"device": self.machine.get("device"), "table": self.fingerprint}
        return Cost(
            LATENCY,
            _nanoseconds(self.rest),
            attention,
            lambda index, width: int(times[width]) if width else 0,
            facts,
        )

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON values only; times are in seconds."""
        return {
            "format": "prunekit-latency-table",
            "version": TABLE_VERSION,
            "model": self.model,
            "conditions": self.conditions,
            "machine": self.machine,
            "rest": asdict(self.rest),
            "attention": {
                kind: [
                    {"num_attention_heads": kv * group, "num_key_value_heads": kv, **asdict(summary)}
                    for (kv, group), summary in measured.items()
                ]
                for kind, measured in self.attention.items()
            },
            "ffn": [{"intermediate_size": width, **asdict(summary)} for width, summary in self.ffn.items()],
            "kinds": list(self.kinds),
            "shape": self.shape.to_dict(),
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the table atomically. Raises PrunekitError where it can't be written: the name is taken, unless by a
        latency table and with ``overwrite``."""
        write_text(Path(path), self.to_json() + "\n", overwrite, what="latency-table")

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read and check a table. Raises PrunekitError where the file is missing, no table, or inconsistent."""
        return cls.from_dict(read_json(Path(path), "latency table"), str(path))

    @classmethod
    def from_dict(cls, data: Any, where: str = "this") -> LatencyTable:
        if not isinstance(data, dict) or data.get("format") != "prunekit-latency-table":
            raise PrunekitError(
                f"{where} is not a latency table; measure one with `prunekit latency-table MODEL -o table.json`."
            )
        if data.get("version") != TABLE_VERSION:
            raise PrunekitError(
                f"{where} has latency table version {data.get('version')!r}; this prunekit reads version "
                f"{TABLE_VERSION}. Measure it again with this version."
            )
        try:
            made = cls(
                model=str(data["model"]),
                shape=ModelShape.from_dict(data["shape"]),
                kinds=tuple(str(kind) for kind in data["kinds"]),
                attention={kind: dict(map(_heads, measured)) for kind, measured in data["attention"].items()},
                ffn=dict(map(_width, data["ffn"])),
                rest=_summary(data["rest"]),
                conditions=dict(data["conditions"]),
                machine=dict(data["machine"]),
            )
            made._check_whole()
            return made
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PrunekitError(
                f"{where} is a damaged latency table ({error}); measure it again with `prunekit latency-table`."
            ) from None

    def _check_whole(self) -> None:
        """Raises ValueError where something that a layer could be has no time."""
        if len(self.kinds) != len(self.shape.layers):
            raise ValueError(f"it names the kinds of {len(self.kinds)} layers of {len(self.shape.layers)}")
        alike = {
            (kind, layer.num_attention_heads, layer.num_key_value_heads): (kind, layer)
            for kind, layer in zip(self.kinds, self.shape.layers, strict=True)
        }
        for kind, layer in alike.values():
            missing = [heads for heads in cut_heads(layer) if heads not in self.attention[kind]]
            if missing:
                raise ValueError(f"it has no time for {missing[0][0]} KV heads of {missing[0][1]} query heads each")
        widest = max(layer.intermediate_size for layer in self.shape.layers)
        if not self.ffn or max(self.ffn) < widest:
            raise ValueError(f"it has no time for an FFN of {widest}")


def cut_heads(layer: LayerShape) -> tuple[Heads, ...]:
    """All that cuts could make of the attention of a layer."""
    return Rounding().attention_choices(layer, ("kv", "query"))


def isotonic(values: Sequence[float]) -> list[float]:
    """The nearest sequence, in squares, that never falls (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (first, many), (second, more) = blocks[-2:]
            blocks[-2:] = [((first * many + second * more) / (many + more), many + more)]
    return [mean for mean, count in blocks for _ in range(count)]


def _nanoseconds(summary: Summary) -> int:
    return round(summary.median * 1e9)


def _words(shape: ModelShape, index: int) -> str:
    layer = shape.layers[index]
    return f"{layer.num_attention_heads}/{layer.num_key_value_heads} heads and {layer.intermediate_size} channels"


def _summary(data: dict[str, Any]) -> Summary:
    times, count = [data[name] for name in ("median", "p20", "p80")], data["count"]
    if not all(type(value) in (int, float) and math.isfinite(value) and 0 < value < 1e6 for value in times):
        raise ValueError("a time is not a positive number of seconds")
    if type(count) is not int or not 0 <= count < 1 << 31:
        raise ValueError("a time was measured another number of times than can be")
    middle, low, high = map(float, times)
    return Summary(middle, low, high, count)


def _heads(data: dict[str, Any]) -> tuple[Heads, Summary]:
    layer = LayerShape(data["num_attention_heads"], data["num_key_value_heads"], 1)
    if not 1 <= layer.num_attention_heads <= LIMITS["num_attention_heads"]:
        raise ValueError(f"it has a time for {layer.num_attention_heads} query heads, which no model has")
    return (layer.num_key_value_heads, layer.group_size), _summary(data)


def _width(data: dict[str, Any]) -> tuple[int, Summary]:
    width = LayerShape(1, 1, data["intermediate_size"]).intermediate_size
    if not 1 <= width <= LIMITS["intermediate_size"]:
        raise ValueError(f"an FFN of {width} is wider than any model's")
    return width, _summary(data)
