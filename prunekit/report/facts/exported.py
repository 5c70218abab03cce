"""Which export a served file is: by the SHA-256 of the file, as the export's folder lists it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prunekit.report.facts.claims import Claim, FileSaid, Proof, Reading, Subject

_Place = tuple[Subject, str]


def placed(files: Sequence[FileSaid]) -> tuple[FileSaid, ...]:
    """``files``, in which what was said of a file of weights is said of the export that holds it."""
    known = {digest: (subject, form) for file in files for digest, subject, form in file.reading.weights}
    if not known:
        return tuple(files)
    return tuple(replace(file, reading=_reading(file.reading, known)) for file in files)


def _reading(reading: Reading, known: dict[str, _Place]) -> Reading:
    return replace(
        reading,
        subjects=tuple(_place(subject, form, known) for subject, form in reading.subjects),
        claims=tuple(_claim(each, known) for each in reading.claims),
        proofs=tuple(_proof(each, known) for each in reading.proofs),
    )


def _place(subject: Subject, form: str, known: dict[str, _Place]) -> _Place:
    found = known.get(subject.fingerprint or "")
    return (subject, form) if found is None else (replace(found[0], dense=subject.dense), found[1])


def _claim(claim: Claim, known: dict[str, _Place]) -> Claim:
    subject, form = _place(claim.subject, claim.form, known)
    against = None if claim.against is None else _place(claim.against, claim.form, known)[0]
    return replace(claim, subject=subject, form=form, against=against)


def _proof(proof: Proof, known: dict[str, _Place]) -> Proof:
    if proof.subject is None:
        return proof
    subject, form = _place(proof.subject, proof.form, known)
    return replace(proof, subject=subject, form=form)
