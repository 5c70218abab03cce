"""What ``prune --json`` and ``recover --json`` printed, and ``inspect --json`` of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from prunekit.report.facts.claims import CHECKPOINT, MEASURED, Claim, Example, Figure, Judged, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.judging import checked_word, half_width
from prunekit.report.readers.place import Place, exact, in_memory, measured

KIND = "summary of a checkpoint"
_TOLD_BY = ("check", "pruned", "recovery", "verified_files")


def recognises(data: Mapping[str, Any]) -> bool:
    return isinstance(data.get("checkpoint"), str) and any(name in data for name in _TOLD_BY)


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is damaged."""
    subject = Subject(clipped(PurePath(data.text("checkpoint")).name or "checkpoint"), False)
    said = data.maybe_object("pruned") or data
    claims = (
        [exact(subject, CHECKPOINT, "parameters", said.number("parameters"), place)] if "parameters" in said else []
    )
    memory = (said.maybe("weight_bytes"), said.maybe("kv_bytes_per_token"))
    claims += in_memory(subject, CHECKPOINT, *memory, said.maybe("parameters"), place)
    if "share_of_blocks" in data:
        claims.append(exact(subject, CHECKPOINT, "blocks_share", data.number("share_of_blocks"), place))
    verdicts: tuple[Judged, ...] = ()
    examples: tuple[Example, ...] = ()
    lost: tuple[str, ...] = ()
    check = data.maybe_object("check")
    if check is not None:
        claims += _claims(check, subject, place)
        text = check.text("text", "")
        if "verdict" in check:
            verdicts = (Judged(subject, CHECKPOINT, checked_word(check, "verdict"), text, place.name),)
        else:
            lost = (
                f"Quality of {subject.name} after it was made: {check.text('why', 'no reason was given').rstrip('.')}.",
            )
        examples = tuple(_example(each, subject, text, place) for each in check.objects("examples"))
    return Reading(
        KIND,
        ((subject, CHECKPOINT),),
        tuple(claims),
        verdicts,
        examples=examples,
        facts=tuple(_facts(data)),
        not_measured=lost,
    )


def _claims(check: Fields, subject: Subject, place: Place) -> list[Claim]:
    added = check.maybe("loss_added", -1e300)
    if added is None:
        return []
    tokens = check.count("tokens")
    setup = f"{check.text('text')}, {tokens:,} tokens, as the command checked it"
    half = half_width(check.maybe("standard_error"), check.count("windows") if "windows" in check else None)
    low, high = (None, None) if half is None else (added - half, added + half)
    figure = Figure(added, MEASURED, low, high, how="the check that ends prune and recover", files=(place.name,))
    agreement = check.maybe("agreement", most=1)
    return [
        Claim(subject, CHECKPOINT, "loss_added", figure, setup),
        *measured(subject, CHECKPOINT, "top1_agreement", agreement, place, setup, figure.how),
    ]


def _example(said: Fields, subject: Subject, text: str, place: Place) -> Example:
    dense = said.prose("baseline") if "baseline" in said else None
    return Example(subject, (text,), said.prose("prompt"), said.prose("model"), dense, place.name)


def _facts(data: Fields) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    method, target = (data.data.get(name) for name in ("method", "target"))
    if isinstance(method, Mapping) and isinstance(method.get("name"), str):
        rows.append(("method", clipped(method["name"])))
    if isinstance(target, Mapping) and isinstance(target.get("asked"), str):
        rows.append(("asked for", clipped(target["asked"])))
    recovery = data.data.get("recovery")
    stages = recovery if isinstance(recovery, list) else [recovery]
    for stage in stages[:50]:
        if isinstance(stage, Mapping):
            said = Fields(stage, data.file, "recovery")
            kl = said.maybe_object("held_out_kl")
            if kl is not None and "tokens" in said:
                rows.append(
                    (
                        "trained on",
                        f"{said.count('tokens'):,} tokens; KL on held-out text {kl.number('before', -1):.4f} before, "
                        f"{kl.number('after', -1):.4f} after",
                    )
                )
    return rows
