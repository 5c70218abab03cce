"""Where a file of a report lies, and what readers of several kinds say alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.report.facts.claims import CHECKPOINT, EXACT, MEASURED, Claim, Figure, Subject
from prunekit.report.facts.fields import Fields, clipped

if TYPE_CHECKING:
    from prunekit.plan import Plan

# Names of precisions that a checkpoint of PyTorch has. Others are those of exports.
_STORED = ("auto", "bfloat16", "float16", "float32")
_OURS = ("torch", "prunekit")


@dataclass(frozen=True)
class Place:
    """A file of the report at ``path``, called ``name`` in it."""

    name: str
    path: Path


def exact(
    subject: Subject, form: str, metric: str, value: float, place: Place, setup: str = "", how: str = ""
) -> Claim:
    """A claim that was counted, not measured."""
    return Claim(subject, form, metric, Figure(value, EXACT, how=how, files=(place.name,)), setup)


def measured(
    subject: Subject,
    form: str,
    metric: str,
    value: float | None,
    place: Place,
    setup: str,
    how: str = "",
    against: Subject | None = None,
    ends: tuple[float, float] | None = None,
) -> list[Claim]:
    """A claim that was measured, with the ``ends`` of its interval where it has one; none where there is no value."""
    if value is None:
        return []
    low, high = ends or (None, None)
    figure = Figure(value, MEASURED, low, high, how=how, files=(place.name,))
    return [Claim(subject, form, metric, figure, setup, against)]


def form_of(runtime: str, dtype: str) -> str:
    """What runs: the checkpoint, or the export for ``runtime`` in ``dtype``."""
    if runtime in _OURS or (runtime in ("", "hf") and dtype in _STORED):
        return CHECKPOINT
    return clipped(f"{runtime} {dtype}".strip())


def file_size(subject: Subject, form: str, value: float, parameters: float | None, place: Place, how: str) -> Claim:
    """The bytes of a model's files. A checkpoint in 16 bits is never compared with one in 32."""
    said = exact(subject, form, "file_bytes", value, place, how=how)
    return replace(said, detail=bits(value, parameters)) if form == CHECKPOINT else said


def in_memory(
    subject: Subject, form: str, weights: float | None, cache: float | None, parameters: float | None, place: Place
) -> list[Claim]:
    """Bytes of the weights, and of a token's keys and values in the same precision, as far as they are told."""
    told = (("weight_bytes", weights), ("kv_bytes_per_token", cache))
    detail = bits(weights, parameters)
    return [
        replace(exact(subject, form, name, value, place), detail=detail) for name, value in told if value is not None
    ]


def bits(size: float | None, parameters: float | None) -> str:
    """How many a weight takes, in words; nothing where that is not known."""
    return f"{round(8 * size / parameters)} bits a weight" if size and parameters else ""


def machine_words(machine: Fields | None) -> str:
    """The machine of a measurement in words, from what :func:`prunekit.utils.machine.describe_machine` says."""
    if machine is None:
        return "machine not told"
    cpu, device = machine.text("cpu", "CPU not told"), machine.text("device", "cpu")
    threads = machine.maybe("threads")
    if device != "cpu":
        return f"{device} ({cpu})"
    return cpu if threads is None else f"{cpu}, {threads:.0f} {'thread' if threads == 1 else 'threads'}"


def version_words(versions: Fields | None) -> str:
    """Versions, such as "prunekit 0.1.0, torch 2.13.0"."""
    if versions is None:
        return ""
    return ", ".join(
        f"{clipped(name)} {clipped(value)}" for name, value in versions.data.items() if isinstance(value, str)
    )


def text_setup(said: Fields, text: str, tokens: str, computed: str, digest: str | None) -> str:
    """Under what a quality was measured: the name of the text, as many of its ``tokens`` (the name of that field), in
    windows, how it was ``computed``, and which tokens these were."""
    parts = [text, f"{said.count(tokens):,} tokens in windows of {said.count('length')}"]
    stride = said.maybe("stride")
    if stride is not None and stride != said.count("length"):
        parts.append(f"one every {stride:.0f}")
    parts.append(computed)
    parts += [f"token ids {clipped(digest)[:12]}"] if digest else []
    return ", ".join(parts)


def geometry(plan: Plan, subject: Subject, dense: Subject, place: Place) -> tuple[Claim, ...]:
    """What follows from a plan by counting."""
    return (
        exact(subject, CHECKPOINT, "parameters", plan.shape.parameters, place),
        exact(subject, CHECKPOINT, "blocks_share", plan.share_of_blocks, place),
        exact(dense, CHECKPOINT, "parameters", plan.source.parameters, place),
        exact(dense, CHECKPOINT, "blocks_share", 1.0, place),
    )
