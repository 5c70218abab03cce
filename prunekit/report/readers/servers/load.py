"""Results of load tests of a server: what their readers have in common."""

from __future__ import annotations

from pathlib import PurePath

from prunekit.errors import PrunekitError
from prunekit.report.facts.claims import CHECKPOINT, Claim, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, measured

# Above it, the percentiles of those that were answered say little.
_MOST_FAILED = 0.01


def served(name: str) -> Subject:
    """The model that a server named: a path by its last part."""
    return Subject(clipped(PurePath(name.rstrip("/")).name or name))


def served_form(server: str) -> str:
    """What of a model runs in a program of the name ``server``."""
    return "gguf" if server.startswith("llama") else CHECKPOINT


def rounded(length: float) -> str:
    """A mean length in two digits: those of two runs of one workload differ a little."""
    return f"{float(f'{length:.2g}'):,.0f}"


def lacking(place: Place, what: str, tool: str, how: str) -> PrunekitError:
    """What a result of a load test can't be without."""
    return PrunekitError(
        f"{place.name} is a result of {tool} that does not say {what}, so nothing can be compared with it; run it "
        f"again{how}, or leave it out."
    )


def setup_words(tool: str, load: str, requests: int, tokens_in: float) -> str:
    """What must be equal for results to be compared. Answers may differ in length, which is told as a figure."""
    return f"{tool}, {load}, {requests:,} requests of about {rounded(tokens_in)} tokens, machine not told"


def claims_of(
    subject: Subject, setup: str, figures: dict[str, float | None], place: Place, how: str
) -> tuple[Claim, ...]:
    """Claims of a server that runs the model; seconds, tokens and shares."""
    return tuple(
        claim
        for name, value in figures.items()
        for claim in measured(subject, CHECKPOINT, name, value, place, setup, how)
    )


def ms(value: float | None) -> float | None:
    """Seconds of milliseconds."""
    return None if value is None else value / 1000


def failures(subject: Subject, share: float | None, place: Place) -> tuple[str, ...]:
    if share is None or share <= _MOST_FAILED:
        return ()
    return (
        f"{place.name}: {share:.1%} of the requests to {subject.name} failed. Times are of those that were answered, "
        "so they look better than they are.",
    )


def reading(kind: str, parts: list[Reading]) -> Reading:
    """One reading of the several runs that a file holds."""
    return Reading(
        kind,
        tuple(dict.fromkeys(each for part in parts for each in part.subjects)),
        tuple(each for part in parts for each in part.claims),
        facts=tuple(dict.fromkeys(each for part in parts for each in part.facts)),
        warnings=tuple(dict.fromkeys(each for part in parts for each in part.warnings)),
    )


def one_run(
    kind: str,
    subject: Subject,
    setup: str,
    figures: dict[str, float | None],
    place: Place,
    how: str,
    facts: tuple[tuple[str, str], ...],
) -> Reading:
    """What one run under one load says."""
    return Reading(
        kind,
        ((subject, CHECKPOINT),),
        claims_of(subject, setup, figures, place, how),
        facts=tuple(row for row in facts if row[1]),
        warnings=failures(subject, figures.get("failed_share"), place),
    )


def first_text(*places: tuple[Fields | None, str]) -> str | None:
    """The first text among fields that may be missing."""
    for said, name in places:
        if said is not None and isinstance(said.data.get(name), str):
            return said.text(name)
    return None
