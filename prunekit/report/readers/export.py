"""An export for a runtime: its size, and how far it is from PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.verdict import word_of
from prunekit.report.facts.claims import CHECKPOINT, Claim, Compared, Judged, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, exact, form_of, measured, version_words
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.sizes import folder_bytes
from prunekit.utils.files.strict_json import parse, read_regular

KIND = "export"
_PARITY = "parity.json"
_TOKENS = (
    ("likeliest", "most likely tokens"),
    ("greedy", "greedy tokens"),
    ("together", "greedy tokens in one batch"),
)


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-export"


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where the manifest is damaged, or the comparison is not the one that was written with it."""
    folder, source = place.path.parent, data.object("source")
    subject = Subject(source.text("name"), None, source.maybe_text("fingerprint"), source.maybe_text("plan_sha256"))
    pruned_from = source.maybe_object("pruned_from")
    dense = None
    if pruned_from is not None:
        subject = replace(subject, dense=False)
        dense = Subject(pruned_from.text("name"), True, pruned_from.maybe_text("fingerprint"))
    form = form_of(data.text("target"), data.text("dtype"))
    if data.text("target") == "hf":
        form = f"hf {data.text('dtype')}"
    verified = data.flag("verified") is True
    rows: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()
    if verified:
        rows = tuple(_rows(_parity(data, place)))
    else:
        why = data.text("unverified", "no reason was given")
        lost = (f"Whether {form} of {subject.name} computes what PyTorch computes: {why.rstrip('.')}.",)
    notes = tuple(("note of the export", clipped(each, 500)) for each in data.texts("notes"))
    context = data.maybe("context_length")
    facts = (
        ("longest text of the export", f"{context:,.0f} tokens" if context else ""),
        ("versions of the export", version_words(data.maybe_object("versions"))),
        *notes,
    )
    how = "all files of the export"
    claims, verdicts, unknown = _on_text(data, subject, dense, form, place)
    return Reading(
        KIND,
        ((subject, form), *(((dense, CHECKPOINT),) if dense is not None else ())),
        (exact(subject, form, "file_bytes", folder_bytes(folder), place, how=how), *claims),
        tuple(verdicts),
        parity=(Compared(subject, form, verified, rows, place.name),),
        facts=tuple(row for row in facts if row[1]),
        not_measured=(*lost, *unknown),
        weights=tuple((digest, subject, form) for digest in _weights(data)),
    )


def _weights(data: Fields) -> Iterator[str]:
    """Of files that servers open, and then know by their own hash."""
    listed = data.maybe_object("files")
    for name, digest in {} if listed is None else listed.data.items():
        if isinstance(name, str) and name.endswith(".gguf") and isinstance(digest, str):
            yield clipped(digest)


def _parity(data: Fields, place: Place) -> Fields:
    file = place.path.parent / _PARITY
    digest = data.object("files").maybe_text(_PARITY)
    if digest is None or file.is_symlink() or not file.is_file() or sha256(file) != digest:
        raise PrunekitError(
            f"{place.path.parent} is damaged: {_PARITY} changed since it was written, or is missing. Copy it again, or "
            "export again."
        )
    try:
        return Fields(parse(read_regular(file)), f"{_PARITY} of {place.name}")
    except ValueError as error:
        raise PrunekitError(f"{file} is no valid JSON ({error}); export again.") from None


def _rows(said: Fields) -> Iterator[tuple[str, str]]:
    """The comparison in words."""
    yield "text", f"{said.text('text')}, {said.count('tokens'):,} tokens"
    logits, tolerance = said.object("logits"), said.object("tolerance")
    yield (
        "logits",
        f"root mean square of the difference {logits.number('rms_relative'):.2g} of their spread (allowed "
        f"{tolerance.number('rms'):.2g}), largest {logits.number('largest_relative'):.2g} (allowed "
        f"{tolerance.number('largest'):.2g})",
    )
    for name, title in _TOKENS:
        each = said.maybe_object(name)
        if each is not None:
            yield (
                title,
                f"{each.count('equal')} of {each.count('compared')} are equal, {each.count('near_ties')} near ties, "
                f"{each.count('wrong')} wrong",
            )
    yield (
        "perplexity",
        f"{said.number('perplexity_runtime'):.4g} in the runtime, {said.number('perplexity_reference'):.4g} of the "
        "checkpoint in PyTorch",
    )
    yield (
        "first choices",
        f"{said.number('agreement', most=1):.1%} are the checkpoint's, KL {said.number('kl', -1e-3):.4f} nats a token",
    )
    weights = said.values("weights")
    if len(weights) == 2 and isinstance(weights[0], float | int) and isinstance(weights[1], str):
        yield "rounded weights", f"largest relative error of a row {weights[0]:.3g}, in {clipped(weights[1])}"


def _on_text(
    data: Fields, subject: Subject, dense_subject: Subject | None, form: str, place: Place
) -> tuple[list[Claim], list[Judged], list[str]]:
    """Perplexity on the user's text of the dense model, the checkpoint and the export, and what the export adds to the
    loss of the dense one; or why they were not measured."""
    said = data.maybe_object("quality")
    if said is None:
        return [], [], []
    text, tokens = said.text("text"), said.count("tokens")
    digest = said.text("tokens_sha256", "")
    setup = f"{text}, {tokens:,} tokens in windows of {said.count('window')}, as the export read it"
    setup += f", token ids {digest[:12]}" if digest else ""
    losses = {name: said.maybe_object(name) for name in ("dense", "pruned", "exported")}
    claims: list[Claim] = []
    lost = []
    whose = (("dense", dense_subject, CHECKPOINT), ("pruned", subject, CHECKPOINT), ("exported", subject, form))
    for name, model, where in whose:
        each = losses[name]
        if each is None or model is None:
            continue
        if "nll" in each:
            claims += measured(
                model, where, "perplexity", each.number("perplexity"), place, setup, f"{tokens:,} tokens"
            )
        elif name != "dense":
            why = each.text("why", "no reason was given").rstrip(".")
            lost.append(f"Perplexity of {model.name} ({where}) on {text}: {why}.")
    dense, exported = losses["dense"], losses["exported"]
    if dense is None or exported is None or "nll" not in dense or "nll" not in exported:
        return claims, [], lost
    added = exported.number("nll") - dense.number("nll")
    how = f"{tokens:,} tokens, in the runtime of the export, against the dense model in PyTorch"
    claims += measured(subject, form, "loss_added", added, place, setup, how)
    return claims, [Judged(subject, form, word_of(added, None), text, place.name)], lost
