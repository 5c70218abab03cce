"""An export for a runtime: its size, and how far it is from PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.report.facts.claims import Compared, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, exact, form_of, version_words
from prunekit.utils.files.hashes import sha256
from prunekit.utils.files.sizes import folder_bytes
from prunekit.utils.files.strict_json import parse, read_regular

KIND = "export"
_PARITY = "parity.json"


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-export"


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where the manifest is damaged, or the comparison is not the one that was written with it."""
    folder, source = place.path.parent, data.object("source")
    subject = Subject(source.text("name"), None, source.maybe_text("fingerprint"))
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
    return Reading(
        KIND,
        ((subject, form),),
        (exact(subject, form, "file_bytes", folder_bytes(folder), place, how=how),),
        parity=(Compared(subject, form, verified, rows, place.name),),
        facts=tuple(row for row in facts if row[1]),
        not_measured=lost,
    )


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
    for name, title in (("greedy", "greedy tokens"), ("together", "greedy tokens in one batch")):
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
    yield from _on_text(said)


def _on_text(said: Fields) -> Iterator[tuple[str, str]]:
    """Perplexity on a text of the user, in each form that it was measured in."""
    own = said.maybe_object("own_text") or said.maybe_object("on_text")
    if own is None:
        return
    parts = [
        f"{title} {own.number(name):.4g}"
        for name, title in (
            ("dense", "dense"),
            ("pruned", "pruned"),
            ("reference", "checkpoint"),
            ("exported", "exported"),
        )
        if name in own
    ]
    yield f"perplexity on {own.text('text', 'own text')}", ", ".join(parts) or own.text("why", "not measured")
