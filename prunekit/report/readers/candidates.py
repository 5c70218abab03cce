"""What ``prunekit candidates`` wrote: models that could be made, with what each would cost and bring."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.plan import Plan
from prunekit.report.facts.claims import (
    CHECKPOINT,
    INTERVAL,
    NOT_MEASURED,
    PREDICTED,
    STATUSES,
    Claim,
    Figure,
    Judged,
    Planned,
    Reading,
    Subject,
)
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.judging import checked_word
from prunekit.report.readers.place import Place, bits, form_of, machine_words, text_setup, version_words
from prunekit.report.readers.plan import reasons_in
from prunekit.utils.files.listed_folder import is_plain
from prunekit.utils.files.strict_json import parse, read_regular

KIND = "candidates"
_VERSION = 1
_QUALITY = ("loss_added", "kl", "top1_agreement", "perplexity")
_PAST = "as far as earlier predictions were off"
_ROOM = ("users", "memory_bytes")
_SPEED = ("ttft_ratio", "tpot_ratio")
_FIGURES = (*_QUALITY, *_ROOM, *_SPEED, "parameters", "blocks_share", "file_bytes", "kv_bytes_per_token")
_AGAINST = ("loss_added", "kl", "top1_agreement", *_SPEED)
_KINDS = ("dense", "prune", "quantise", "both")


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-candidates"


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    if data.data.get("version") != _VERSION:
        raise PrunekitError(
            f"{place.name} has version {clipped(str(data.data.get('version')))} of its format; this prunekit reads "
            f"version {_VERSION}."
        )
    model = data.object("model")
    dense = Subject(model.text("name"), True, model.maybe_text("fingerprint"))
    setups = _setups(data)
    subjects: list[tuple[Subject, str]] = []
    claims: list[Claim] = []
    verdicts: list[Judged] = []
    plans: dict[str, Planned] = {}
    lost: list[str] = []
    for row in data.objects("rows"):
        subject, form = _subject(row, dense, data), _form(row, data)
        subjects.append((subject, form))
        claims += _claims(row, subject, form, setups, dense, place)
        # Where nothing is rounded, PyTorch has read the text with the model as it is before the export.
        form = _judged_form(row, form)
        word = row.maybe_text("verdict")
        if word is not None:
            source = setups[_QUALITY[0]]
            verdicts.append(Judged(subject, form, checked_word(row, "verdict"), source, place.name))
        name = row.maybe_text("plan")
        if name is not None and name not in plans:
            found, why = _plan(name, row, subject, place)
            lost += [why] if why else []
            plans.update({name: found} if found else {})
    told = [clipped(each, 500) for each in data.texts("not_measured")]
    return Reading(
        KIND,
        tuple(subjects),
        tuple(claims),
        tuple(verdicts),
        tuple(plans.values()),
        reasons=tuple(each for planned in plans.values() for each in _reasons(planned, place)),
        facts=(*_facts(data), *_notes(data)),
        not_measured=tuple(dict.fromkeys((*told, *lost))),
    )


def _subject(row: Fields, dense: Subject, data: Fields) -> Subject:
    kind = row.text("kind")
    if kind not in _KINDS:
        raise row.wrong("kind", f"one of {', '.join(_KINDS)}")
    if kind in ("dense", "quantise"):
        return dense
    name = row.maybe_text("plan")
    label = row.text("name") if name is None else name.removesuffix(".json")
    return Subject(label, False, plan=row.maybe_text("plan_sha256"))


def _form(row: Fields, data: Fields) -> str:
    dtype = row.text("dtype")
    target, _, meant = data.text("for", "").partition(":")
    return form_of(target if dtype == meant else "", dtype)


def _judged_form(row: Fields, form: str) -> str:
    """Of what the quality of a row is."""
    return CHECKPOINT if row.text("kind") in ("dense", "prune") else form


def _setups(data: Fields) -> dict[str, str]:
    """What figures of each name were measured under."""
    said = data.maybe_object("evaluation")
    quality = "text not told"
    if said is not None:
        computed = f"{said.text('dtype')} on {said.text('device')}"
        quality = text_setup(said, said.text("source"), "tokens", computed, said.maybe_text("token_ids_sha256"))
    context, memory = data.maybe("context", 1), data.maybe("memory_bytes", 1)
    room = f"context of {context:,.0f} tokens" if context else ""
    room += f" in {memory / 1e9:,.3g} GB" if memory else ""
    speed = f"as candidates says, {machine_words(data.maybe_object('machine'))}"
    return {**dict.fromkeys(_QUALITY, quality), **dict.fromkeys(_ROOM, room), **dict.fromkeys(_SPEED, speed)}


def _claims(
    row: Fields, subject: Subject, form: str, setups: Mapping[str, str], dense: Subject, place: Place
) -> list[Claim]:
    figures = row.maybe_object("figures")
    if figures is None:
        return []
    claims = [
        Claim(
            subject,
            _judged_form(row, form) if name in _QUALITY else form,
            name,
            _figure(figures.object(name), place),
            setups.get(name, ""),
            dense if name in _AGAINST else None,
        )
        for name in (*_FIGURES, "prune_minutes")
        if name in figures
    ]
    return [_sized(each, claims) if each.metric in ("file_bytes", "kv_bytes_per_token") else each for each in claims]


def _sized(claim: Claim, claims: list[Claim]) -> Claim:
    """A size, with the bits of a weight where it is a checkpoint's."""
    told = {each.metric: each.figure.value for each in claims}
    detail = bits(told.get("file_bytes"), told.get("parameters")) if claim.form == CHECKPOINT else ""
    return replace(claim, detail=detail)


def _figure(said: Fields, place: Place) -> Figure:
    status = said.text("status")
    if status not in STATUSES:
        raise said.wrong("status", f"one of {', '.join(STATUSES)}")
    value, low, high = (said.maybe(name, -1e300) for name in ("value", "low", "high"))
    if (value is None) != (status == NOT_MEASURED):
        raise said.wrong("value", "a number, unless it is not measured,")
    if low is None or high is None:
        low = high = None
    elif value is not None and not low <= value <= high:
        raise said.wrong("low", "a bound below the value")
    interval = _PAST if status == PREDICTED else INTERVAL
    return Figure(value, status, low, high, clipped(said.text("how", ""), 500), (place.name,), interval)


def _plan(name: str, row: Fields, subject: Subject, place: Place) -> tuple[Planned | None, str | None]:
    """The plan that lies beside the file, or why its widths are not shown."""
    if not is_plain(name) or "/" in name:
        raise row.wrong("plan", "the name of a file beside it")
    path = place.path.parent / name
    if path.is_symlink() or not path.is_file():
        return None, f"The widths of {name}: it does not lie beside {place.name}."
    try:
        raw = read_regular(path)
        plan = Plan.from_dict(parse(raw.decode("utf-8-sig")), name)
    except (OSError, ValueError) as error:
        raise PrunekitError(f"{name} beside {place.name} can't be read ({error}); make it again.") from None
    wanted = row.maybe_text("plan_sha256")
    if wanted is not None and hashlib.sha256(raw).hexdigest() != wanted:
        return None, f"The widths of {name}: the file beside {place.name} is not the one that was measured."
    return Planned(subject, plan, place.name), None


def _reasons(planned: Planned, place: Place) -> Any:
    return reasons_in(planned.plan, planned.subject.name, place)


def _facts(data: Fields) -> list[tuple[str, str]]:
    rows = [
        ("machine", machine_words(data.maybe_object("machine"))),
        ("versions", version_words(data.maybe_object("versions"))),
    ]
    for name, title in (("calibration", "calibration text"), ("evaluation", "text that quality was measured on")):
        said = data.maybe_object(name)
        if said is not None:
            rows.append((title, ", ".join(f"{clipped(key)} {clipped(str(each))}" for key, each in _simple(said))))
    return [row for row in rows if row[1]]


def _notes(data: Fields) -> list[tuple[str, str]]:
    """What is said of single rows."""
    return [
        (f"note on {row.text('name')}", clipped(note, 500))
        for row in data.objects("rows")
        for note in row.texts("notes")
    ]


def _simple(said: Fields) -> list[tuple[str, Any]]:
    return [(key, each) for key, each in said.data.items() if isinstance(each, str | int | float)][:20]
