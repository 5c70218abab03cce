"""Plan: which units every layer keeps. JSON on disk, readable and diffable, with its provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan.provenance import check_provenance, recipe_before
from prunekit.plan.recipe import Recipe, of_plan
from prunekit.plan.shape import LIMITS, LayerShape, ModelShape
from prunekit.utils.files.atomic import read_json, write_text
from prunekit.utils.ranges import decode_ranges, encode_ranges

PLAN_VERSION = 1
# Units of all layers together, each of which takes 40 bytes: three times what the largest model has.
_MAX_UNITS = 1 << 24
_CHANGEABLE = ("hidden_size", "tie_word_embeddings", "qkv_bias", "o_bias", "mlp_bias")


@dataclass(frozen=True)
class LayerKeep:
    """The units that one layer keeps, as indices into the source model's layer ``index``.

    ``query_heads`` are counted over the whole layer; every kept KV head has the same number of them. Without heads the
    layer has no attention, without ``ffn`` no FFN.
    """

    index: int
    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    ffn: tuple[int, ...]

    @property
    def shape(self) -> LayerShape:
        return LayerShape(len(self.query_heads), len(self.kv_heads), len(self.ffn))

    @classmethod
    def everything(cls, index: int, layer: LayerShape) -> LayerKeep:
        return cls(
            index,
            tuple(range(layer.num_key_value_heads)),
            tuple(range(layer.num_attention_heads)),
            tuple(range(layer.intermediate_size)),
        )

    def compose(self, then: LayerKeep) -> LayerKeep:
        """The units that are left when ``then``, which indexes into what this keeps, is applied after it."""
        return LayerKeep(
            self.index,
            tuple(self.kv_heads[unit] for unit in then.kv_heads),
            tuple(self.query_heads[unit] for unit in then.query_heads),
            tuple(self.ffn[unit] for unit in then.ffn),
        )

    def check(self, dense: LayerShape) -> None:
        """Raises PrunekitError where the kept units don't fit a layer of shape ``dense``."""
        where = f"Layer {self.index} of the plan"
        for name, indices, limit in (
            ("KV heads", self.kv_heads, dense.num_key_value_heads),
            ("query heads", self.query_heads, dense.num_attention_heads),
            ("FFN channels", self.ffn, dense.intermediate_size),
        ):
            if not indices:
                continue
            if any(a >= b for a, b in pairwise(indices)) or indices[0] < 0 or indices[-1] >= limit:
                raise PrunekitError(f"{where} keeps {name} that are not rising indices below {limit}.")
        if bool(self.kv_heads) != bool(self.query_heads):
            raise PrunekitError(f"{where} keeps query heads without KV heads, or KV heads without query heads.")
        if not self.kv_heads and not self.ffn:
            raise PrunekitError(f"{where} keeps neither attention nor FFN; leave the whole layer out.")
        per_group = dict.fromkeys(self.kv_heads, 0)
        for head in self.query_heads:
            kv = head // dense.group_size
            if kv not in per_group:
                raise PrunekitError(f"{where} keeps query head {head}, but not KV head {kv}, which serves it.")
            per_group[kv] += 1
        if len(set(per_group.values())) > 1:
            raise PrunekitError(f"{where} keeps unequal numbers of query heads in its KV groups: {per_group}.")


@dataclass(frozen=True)
class Plan:
    """What to keep of a model of shape ``source``; layers that are missing are dropped.

    ``recipe`` is what the plan was made by, and says what is still to be computed where it is applied; plans of earlier
    versions have none of their own (:meth:`read_recipe`). Texts have their names in it, and not
    their paths. ``provenance`` tells people how the plan was made: model fingerprint, calibration data, method, target,
    versions. Both hold no clock time, so that the same inputs give the same file. ``changes`` are the fields of
    ``source``, beside its layers, that are another in the pruned model: biases that it gains (FLAP), its hidden_size
    and untied head (SliceGPT). ``file`` is where it was read from: nothing that it makes may replace that. ``text`` is
    the calibration text that it was made on, as long as it is at hand; it is not saved.

    >>> Plan.load("plan.json").share_of_blocks  # doctest: +SKIP
    0.7996
    """

    source: ModelShape
    layers: tuple[LayerKeep, ...]
    provenance: dict[str, Any] = field(default_factory=dict)
    changes: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    file: Path | None = field(default=None, compare=False, repr=False)
    text: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.layers:
            raise PrunekitError("The plan drops every layer; keep at least one.")
        indices = [layer.index for layer in self.layers]
        if indices != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= self.source.num_hidden_layers:
            raise PrunekitError(f"The plan's layers must be rising indices below {self.source.num_hidden_layers}.")
        for layer in self.layers:
            layer.check(self.source.layers[layer.index])
        unknown = sorted(set(self.changes) - set(_CHANGEABLE))
        if unknown:
            raise PrunekitError(f"The plan changes {unknown[0]!r}, which no plan can; make the plan again.")
        # Refuses values that no model can have.
        if self.shape.hidden_size > LIMITS["hidden_size"]:
            raise PrunekitError(f"The plan changes hidden_size to {self.shape.hidden_size}, which no model has.")

    @property
    def shape(self) -> ModelShape:
        """Shape of the pruned model."""
        return replace(self.source.with_layers(layer.shape for layer in self.layers), **self.changes)

    def __repr__(self) -> str:
        """A short table; layers in a row that are alike share a line."""
        rows = [("layers", "query heads", "KV heads", "FFN width"), *self._rows()]
        sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in rows)
        return "\n".join([self._title(), *lines])

    def _repr_html_(self) -> str:
        """The same for notebooks."""
        head = "".join(f"<th>{name}</th>" for name in ("layers", "query heads", "KV heads", "FFN width"))
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in self._rows())
        return f"<p>{self._title()}</p><table><tr>{head}</tr>{body}</table>"

    def _title(self) -> str:
        return (
            f"Plan: {self.share_of_blocks:.2%} of the decoder blocks, {self.share_of_parameters:.2%} of all parameters "
            f"({self.shape.parameters:,} of {self.source.parameters:,})"
        )

    def _rows(self) -> list[tuple[str, ...]]:
        """Layers, query heads, KV heads and FFN width, each "now of before"."""
        kept = {layer.index: layer.shape for layer in self.layers}
        runs: list[tuple[list[int], tuple[str, ...]]] = []
        for index, dense in enumerate(self.source.layers):
            now = kept.get(index)
            pairs = ("num_attention_heads", "num_key_value_heads", "intermediate_size") if now else ()
            cells = tuple(f"{getattr(now, name)} of {getattr(dense, name)}" for name in pairs) or ("dropped", "", "")
            if runs and runs[-1][1] == cells:
                runs[-1][0].append(index)
            else:
                runs.append(([index], cells))
        return [(encode_ranges(tuple(indices)), *cells) for indices, cells in runs]

    def read_recipe(self) -> Recipe | None:
        """The recipe, or what the provenance of an earlier version tells of it; None where nobody said.

        Raises PrunekitError where an earlier version asks for what makes no sense, or is done no more.
        """
        return self.recipe or recipe_before(self.provenance)

    @property
    def added_biases(self) -> tuple[str, ...]:
        """The biases (fields of ModelShape) that the pruned model has and the source lacks."""
        return tuple(name for name in self.changes if name.endswith("_bias"))

    @property
    def cuts(self) -> bool:
        """Whether anything goes at all."""
        return self.shape.layers != self.source.layers

    @property
    def dropped_layers(self) -> tuple[int, ...]:
        kept = {layer.index for layer in self.layers}
        return tuple(i for i in range(self.source.num_hidden_layers) if i not in kept)

    @property
    def share_of_blocks(self) -> float:
        """Kept share of the decoder blocks' parameters."""
        return self.shape.block_parameters / self.source.block_parameters

    @property
    def share_of_parameters(self) -> float:
        """Kept share of all parameters."""
        return self.shape.parameters / self.source.parameters

    def to_json(self) -> str:
        widths = [
            {
                "index": layer.index,
                "num_attention_heads": layer.shape.num_attention_heads,
                "num_key_value_heads": layer.shape.num_key_value_heads,
                "intermediate_size": layer.shape.intermediate_size,
                "keep": {
                    "kv_heads": encode_ranges(layer.kv_heads),
                    "query_heads": encode_ranges(layer.query_heads),
                    "ffn": encode_ranges(layer.ffn),
                },
            }
            for layer in self.layers
        ]
        return json.dumps(
            {
                "format": "prunekit-plan",
                "version": PLAN_VERSION,
                "share_of_blocks": round(self.share_of_blocks, 6),
                "share_of_parameters": round(self.share_of_parameters, 6),
                **({} if self.recipe is None else {"recipe": self.recipe.to_dict()}),
                "provenance": self.provenance,
                **({"changes": self.changes} if self.changes else {}),
                "layers": widths,
                "source": self.source.to_dict(),
            },
            indent=1,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the plan atomically. Raises PrunekitError where it can't be written: the name is taken, unless by a
        plan and with ``overwrite``."""
        write_text(Path(path), self._file(), overwrite, what="plan")

    def file_digest(self) -> str:
        """The SHA-256 of the file that :meth:`save` writes."""
        return hashlib.sha256(self._file().encode()).hexdigest()

    def _file(self) -> str:
        return self.to_json() + "\n"

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read and check a plan. Raises PrunekitError where the file is missing, no plan, or inconsistent."""
        return replace(cls.from_dict(read_json(Path(path), "plan"), str(path)), file=Path(path))

    @classmethod
    def from_dict(cls, data: Any, where: str = "this") -> Plan:
        if not isinstance(data, dict) or data.get("format") != "prunekit-plan":
            raise PrunekitError(f"{where} is not a prunekit plan; write one with `prunekit plan MODEL -o plan.json`.")
        if data.get("version") != PLAN_VERSION:
            raise PrunekitError(
                f"{where} has plan version {data.get('version')!r}; this prunekit reads version {PLAN_VERSION}. "
                "Make the plan again with this version."
            )
        try:
            source = ModelShape.from_dict(data["source"])
            _check_size(source, where)
            layers: list[LayerKeep] = []
            for entry in data["layers"]:
                index = entry["index"]
                if type(index) is not int or not 0 <= index < source.num_hidden_layers:
                    raise PrunekitError(f"{where} names layer {index!r}; the model has {source.num_hidden_layers}.")
                # Before its units are spelled out: a layer a thousand times would fill the memory.
                if layers and index <= layers[-1].index:
                    raise PrunekitError(f"{where} names layer {index} after layer {layers[-1].index}; they must rise.")
                dense, keep = source.layers[index], entry["keep"]
                if keep.get("merged"):
                    raise PrunekitError(
                        f"{where} merges KV heads of layer {index} (kv-merge), which this version of prunekit can't "
                        "do; make the plan again without that, or apply it with the version that made it."
                    )
                layers.append(
                    LayerKeep(
                        index,
                        _units(keep["kv_heads"], dense.num_key_value_heads),
                        _units(keep["query_heads"], dense.num_attention_heads),
                        _units(keep["ffn"], dense.intermediate_size),
                    )
                )
                shape = layers[-1].shape
                stated = LayerShape(
                    entry["num_attention_heads"], entry["num_key_value_heads"], entry["intermediate_size"]
                )
                if shape != stated:
                    raise PrunekitError(f"Layer {index} of {where} states {stated}, but its kept units give {shape}.")
            provenance = check_provenance(data.get("provenance", {}))
            changes = data.get("changes", {})
            if not isinstance(changes, dict):
                raise TypeError("its changes are no JSON object")
            recipe = None if data.get("recipe") is None else Recipe.from_dict(of_plan(data["recipe"]))
            return cls(source, tuple(layers), provenance, changes, recipe)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PrunekitError(f"{where} is a damaged plan ({error}); make it again with `prunekit plan`.") from None


def _units(text: str, limit: int) -> tuple[int, ...]:
    return () if text == "" else decode_ranges(text, limit)


def shapes_in_place(keeps: Iterable[LayerKeep], count: int) -> list[LayerShape]:
    """The shapes that ``keeps`` leaves, one for each of the ``count`` layers that they index: what is dropped has
    nothing."""
    kept = {keep.index: keep.shape for keep in keeps}
    return [kept.get(index, LayerShape(0, 0, 0)) for index in range(count)]


def whole_plan(shape: ModelShape) -> Plan:
    """The plan that keeps everything of a model."""
    return Plan(shape, tuple(LayerKeep.everything(index, layer) for index, layer in enumerate(shape.layers)))


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does what ``first`` and then ``second``, a plan of the model that ``first`` makes, do.

    Its recipe and provenance are those of ``second``, but that it is of the model of ``first``, whose history comes
    first. Raises PrunekitError where ``second`` is a plan of a model of another shape.
    """
    if second.source != first.shape:
        raise PrunekitError(
            f"The second plan is of a model with {second.source.parameters:,} parameters, and the first one makes one "
            f"with {first.shape.parameters:,}; they don't follow each other."
        )
    earlier, later = first.provenance, second.provenance
    lists = {name: [*earlier.get(name, ()), *later.get(name, ())] for name in ("history", "recovery")}
    return Plan(
        source=first.source,
        layers=tuple(first.layers[keep.index].compose(keep) for keep in second.layers),
        provenance={
            **later,
            **({"model": earlier["model"]} if "model" in earlier else {}),
            **{name: each for name, each in lists.items() if each},
        },
        changes={**first.changes, **second.changes},
        recipe=second.recipe,
        text=second.text,
    )


def _check_size(source: ModelShape, where: str) -> None:
    """A range like 0-999999999999 is short to write: refuse it before it is spelled out in memory."""
    units = sum(layer.num_attention_heads + layer.intermediate_size for layer in source.layers)
    if units > _MAX_UNITS:
        raise PrunekitError(
            f"{where} is of a model with {source.num_hidden_layers} layers and {units:,} units, which no model has; "
            "make the plan again."
        )
