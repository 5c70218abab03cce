"""Rows of figures from what was measured of the dense model, its pruned forms and their quantised ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from prunekit.evaluation.perplexity import Evaluation, TextResult
from prunekit.evaluation.verdict import BROKEN, verdict
from prunekit.pipeline.candidates.asked import Format
from prunekit.pipeline.candidates.costs import Place, Read, latency_figures, memory_figures
from prunekit.pipeline.candidates.figure import Figure, exact, mapped, measured, predicted, unknown
from prunekit.pipeline.candidates.kept import Measured
from prunekit.pipeline.candidates.result import Row
from prunekit.plan import Plan, shapes_in_place
from prunekit.plan.shape import LayerShape, ModelShape

if TYPE_CHECKING:
    import torch

_QUALITY = ("loss_added", "kl", "top1_agreement", "perplexity")


@dataclass(frozen=True)
class Facts:
    """What all rows share: the ``dense`` model's shape, the dtype that weights are ``stored`` in, how text is called
    that quality was measured on (``text``), the ``format_`` that ships, where it runs."""

    dense: ModelShape
    stored: torch.dtype
    text: str
    format_: Format | None
    place: Place

    @property
    def stored_name(self) -> str:
        return str(self.stored).removeprefix("torch.")


@dataclass(frozen=True)
class Candidate:
    """A model that rows tell of: ``plan`` None is the dense one. ``own`` was measured of it as it is, ``shipped`` of
    its export, where a format was asked for; ``how`` says what was done to it (refitted, rescaled)."""

    name: str
    plan: Plan | None
    own: Measured
    shipped: Measured | None
    how: str

    def shape(self, dense: ModelShape) -> ModelShape:
        return dense if self.plan is None else self.plan.shape

    def layers(self, dense: ModelShape) -> list[LayerShape]:
        """By the layers of the dense model: what was dropped has nothing."""
        return [*dense.layers] if self.plan is None else shapes_in_place(self.plan.layers, dense.num_hidden_layers)


def rows_of(candidate: Candidate, facts: Facts) -> list[Row]:
    """The row of a candidate as it is stored, and where the format that ships rounds weights, that of its rounded
    form."""
    format_ = facts.format_
    plain = _plain(candidate, facts)
    if format_ is None or not format_.rounds:
        return [plain]
    return [plain, _rounded(candidate, facts, format_)]


def _plain(candidate: Candidate, facts: Facts) -> Row:
    format_, shape = facts.format_, candidate.shape(facts.dense)
    exported = format_ is not None and not format_.rounds
    if exported:
        assert format_ is not None
        dtype, size = format_.dtype, _file_bytes(candidate.shipped, format_)
    else:
        how = f"weights of the Hugging Face checkpoint in {facts.stored_name}"
        dtype, size = facts.stored_name, exact(shape.weight_bytes(facts.stored.itemsize), how)
    quality = (
        _of_dense(candidate.own, facts) if candidate.plan is None else _quality(candidate.own, facts, candidate.how)
    )
    return Row(
        candidate.name,
        "dense" if candidate.plan is None else "prune",
        candidate.plan,
        dtype,
        {**quality, **_costs(candidate, facts, size, candidate.shipped if exported else None, rounded=False)},
        None if candidate.plan is None else _verdict(candidate.own),
        notes=_notes(candidate.shipped) if exported else (),
    )


def _rounded(candidate: Candidate, facts: Facts, format_: Format) -> Row:
    made = candidate.shipped or Measured(why="it was not exported")
    how = f"weights as the {format_.text} file holds them, computed in float32 by PyTorch; the runtime rounds more"
    if candidate.plan is not None:
        how = f"{candidate.how}; {how}"
    return Row(
        f"{candidate.name} {format_.dtype}",
        "quantise" if candidate.plan is None else "both",
        candidate.plan,
        format_.dtype,
        {
            **_quality(made, facts, how),
            **_costs(candidate, facts, _file_bytes(made, format_), made, rounded=True),
        },
        _verdict(made),
        notes=_notes(made),
        fallbacks=_fallbacks(made, candidate, facts.dense),
    )


def _fallbacks(made: Measured, candidate: Candidate, dense: ModelShape) -> dict[str, int] | None:
    """Tensors that are stored in a larger type than wished and the bytes that costs: all, and those of widths that
    pruning chose, which another rounding would avoid."""
    told = made.facts.get("fallbacks")
    if told is None:
        return None
    ours: list[int] = []
    for place, keep in enumerate(() if candidate.plan is None else candidate.plan.layers):
        before, now = dense.layers[keep.index], keep.shape
        if now.intermediate_size != before.intermediate_size and str(place) in told["ffn"]:
            ours.append(told["ffn"][str(place)])
        if now.num_attention_heads != before.num_attention_heads and str(place) in told["heads"]:
            ours.append(told["heads"][str(place)])
    return {
        "tensors": told["tensors"],
        "bytes": told["bytes"],
        "of_pruned_widths": len(ours),
        "of_pruned_widths_bytes": sum(ours),
    }


def _notes(made: Measured | None) -> tuple[str, ...]:
    return () if made is None else tuple(str(note) for note in made.facts.get("notes", ()))


def _file_bytes(made: Measured | None, format_: Format) -> Figure:
    if made is None or "file_bytes" not in made.facts:
        return unknown(made.why if made is not None and made.why else "it was not exported")
    what = "file" if "kv_bytes_per_token" in made.facts else "folder"
    how = f"{what} that prunekit export --to {format_.target.name} --dtype {format_.dtype} writes"
    if fell := (made.facts.get("fallbacks") or {}).get("tensors"):
        how += f"; {fell} tensors fell back to larger types"
    return exact(int(made.facts["file_bytes"]), how)


def _quality(made: Measured, facts: Facts, how: str) -> dict[str, Figure]:
    found = made.result
    if found is None or found.nll_increase is None or found.kl is None or found.agreement is None:
        return dict.fromkeys(_QUALITY, unknown(made.why or "it was not evaluated"))
    said, count = f"{_on(found, facts)}; {how}", found.windows
    return {
        "loss_added": measured(found.nll_increase, found.nll_increase_standard_error, count, said),
        "kl": measured(found.kl, found.kl_standard_error, count, said, least=0),
        "top1_agreement": measured(found.agreement, found.agreement_standard_error, count, said, least=0, most=1),
        "perplexity": _perplexity(found, said),
    }


def _of_dense(made: Measured, facts: Facts) -> dict[str, Figure]:
    itself = "it is what others are compared with"
    own = {"loss_added": exact(0.0, itself), "kl": exact(0.0, itself), "top1_agreement": exact(1.0, itself)}
    if made.result is None:
        return {**own, "perplexity": unknown(made.why or "it was not evaluated")}
    return {**own, "perplexity": _perplexity(made.result, _on(made.result, facts))}


def _perplexity(found: TextResult, how: str) -> Figure:
    """e to the loss and to the ends of its interval."""
    figure = mapped(measured(found.nll, found.nll_standard_error, found.windows, how), _exp, how)
    return replace(figure, value=found.perplexity)


def _exp(value: float) -> float:
    return math.exp(value) if value < 709 else math.inf


def _on(found: TextResult, facts: Facts) -> str:
    alone = "; one window, so there is no interval" if found.windows < 2 else ""
    return f"{found.tokens_predicted:,} tokens of {facts.text}, windows of {found.length}{alone}"


def _verdict(made: Measured) -> str | None:
    if made.broken:
        return BROKEN
    if made.result is None:
        return None
    found = verdict(Evaluation("", "", "", "", (made.result,)))
    return None if found is None else found.word


def _costs(
    candidate: Candidate, facts: Facts, size: Figure, made: Measured | None, *, rounded: bool
) -> dict[str, Figure]:
    """Everything but quality. ``made`` tells of the export where that is the row's."""
    dense, shape = facts.dense, candidate.shape(facts.dense)
    counted = "counted from the widths"
    wide = facts.stored.itemsize > 2 if made is None else facts.format_ is not None and facts.format_.dtype == "fp32"
    element = 4 if wide else 2
    told = None if made is None else made.facts.get("kv_bytes_per_token")
    kv = int(told) if told else shape.kv_bytes_per_token(element)
    kv_how = "float16, as llama.cpp keeps them" if told else f"{8 * element} bits each"
    read = Read(made.facts.get("decode_bytes") if made is not None else _decode_bytes(shape, facts), rounded)
    of_dense = Read(_decode_bytes(dense, facts))
    return {
        "parameters": exact(shape.parameters, counted),
        "blocks_share": exact(shape.block_parameters / dense.block_parameters, counted),
        "file_bytes": size,
        **memory_figures(size, kv, facts.place, kv_how),
        **_latency(candidate, facts, read, of_dense, kv, rounded),
        "prune_minutes": _minutes(candidate),
    }


def _decode_bytes(shape: ModelShape, facts: Facts) -> int:
    return shape.decode_bytes(facts.stored.itemsize)


def _latency(
    candidate: Candidate, facts: Facts, read: Read, of_dense: Read, kv: int, rounded: bool
) -> dict[str, Figure]:
    if candidate.plan is None and read == of_dense:
        itself = exact(1.0, "it is what others are compared with")
        return {"ttft_ratio": itself, "tpot_ratio": itself}
    dense = facts.dense
    dense_kv = dense.kv_bytes_per_token(4 if facts.stored.itemsize > 2 else 2)
    layers = candidate.layers(dense)
    return latency_figures(dense, layers, candidate.shape(dense), read, of_dense, kv, dense_kv, facts.place)


def _minutes(candidate: Candidate) -> Figure:
    if candidate.plan is None:
        return unknown("nothing is pruned")
    if candidate.own.seconds is None:
        return unknown(candidate.own.why or "it was not pruned")
    how = (
        "computing took so long when this size was measured; reading the text, writing and the check of the result "
        "come on top"
    )
    return predicted(candidate.own.seconds / 60, how)
