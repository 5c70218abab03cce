"""What ``prunekit bench`` timed: the first token and each further one, of a pruned model and its dense one in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunekit.profiling.prices import throughput
from prunekit.report.facts.claims import (
    CHECKPOINT,
    ESTIMATED,
    EXACT,
    INTERVAL,
    MEASURED,
    Claim,
    Figure,
    Reading,
    Subject,
)
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.place import Place, exact, file_size, form_of, in_memory, machine_words, measured

KIND = "bench"
PHASES = {"ttft": "time of the first token", "tpot": "time of each further token"}
_SPREAD = "p20–p80"


def recognises(data: Mapping[str, Any]) -> bool:
    return all(isinstance(data.get(name), dict) for name in ("dense", "pruned", "config", "machine"))


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is damaged."""
    form = form_of(data.text("runtime"), data.text("dtype"))
    both = (_subject(data.object("dense"), True), _subject(data.object("pruned"), False))
    claims: list[Claim] = []
    warnings: list[str] = []
    base = _base(data)
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        claims += _sizes(data.object(name), subject, form, data, base, place)
    for result in data.objects("results"):
        setup = f"{base}, batch {result.count('batch', 1)}"
        for phase in PHASES:
            claims += _times(result.object(phase), phase, both, form, setup, place)
        claims += _output(result, data.object("config"), both, form, setup, place)
        warnings += _doubts(result, both[1].name, place)
    energy, lost = _energy(data, both, form, base, place)
    detail = _detail(data)
    timed = tuple(replace(each, detail=detail) if each.setup.startswith(base) else each for each in (*claims, *energy))
    return Reading(
        KIND,
        tuple((subject, form) for subject in both),
        timed,
        facts=tuple(_facts(data)),
        not_measured=tuple(lost),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _subject(said: Fields, dense: bool) -> Subject:
    return Subject(said.text("name"), dense, said.maybe_text("fingerprint"), said.maybe_text("plan_sha256"))


def _base(data: Fields) -> str:
    """What must be equal for times to be compared."""
    config = data.object("config")
    return (
        f"{machine_words(data.object('machine'))}, prompt of {config.count('prompt')}, {config.count('tokens')} tokens "
        "decoded"
    )


def _detail(data: Fields) -> str:
    """Runtime and precision."""
    machine, runtime = data.object("machine"), data.text("runtime")
    version = f" {machine.text('torch')}" if "torch" in machine and runtime in ("torch", "prunekit") else ""
    return f"{runtime}{version} in {data.text('dtype')}"


def _sizes(said: Fields, subject: Subject, form: str, data: Fields, base: str, place: Place) -> list[Claim]:
    claims = [exact(subject, CHECKPOINT, "parameters", said.number("parameters"), place)]
    if "file_bytes" in said:
        what = "weight files" if form == CHECKPOINT else "all files of the export"
        claims.append(file_size(subject, form, said.number("file_bytes"), said.number("parameters"), place, what))
    told = (said.maybe("weight_bytes"), said.maybe("kv_bytes_per_token"))
    claims += in_memory(subject, form, *told, said.number("parameters"), place)
    how = data.text("peak_how", "")
    return claims + measured(subject, form, "peak_bytes", said.maybe("peak_bytes"), place, base, clipped(how))


def _times(said: Fields, phase: str, both: tuple[Subject, Subject], form: str, setup: str, place: Place) -> list[Claim]:
    claims = []
    doubt = doubt_of(said)
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        claims.append(Claim(subject, form, phase, summary_of(said.object(name), place, doubt), setup))
    ratio = said.object("ratio")
    figure = _with_interval(summary_of(ratio, place, doubt), said)
    claims.append(Claim(both[1], form, f"{phase}_ratio", figure, setup, both[0]))
    one = Figure(1.0, EXACT, how="the model that others are compared with", files=(place.name,))
    return [*claims, Claim(both[0], form, f"{phase}_ratio", one, setup, both[0])]


def summary_of(said: Fields, place: Place, doubt: str = "") -> Figure:
    """The median of timed runs, and how they spread."""
    low, high = said.number("p20"), said.number("p80")
    how = f"median of {said.count('count')} runs{'; not to be believed: ' + doubt if doubt else ''}"
    return Figure(said.number("median"), MEASURED, low, high, how, (place.name,), _SPREAD, not doubt)


def _with_interval(figure: Figure, said: Fields) -> Figure:
    """With the 95 % interval of the median instead of the spread, where the bench took runs enough for one."""
    bounds = said.values("interval", 2)
    if len(bounds) != 2 or figure.value is None:
        return figure
    low, high = (Fields({"interval": each}, said.file, said.where).number("interval") for each in bounds)
    if not low <= figure.value <= high:
        raise said.wrong("interval", "bounds around the median")
    return replace(figure, low=low, high=high, interval=INTERVAL)


def doubt_of(said: Fields) -> str:
    """Why the bench itself does not believe a figure; nothing where it does, or does not say."""
    if said.flag("believed") is not False:
        return ""
    return clipped(". ".join(_sentences(said)) or "the bench says so", 500)


def _sentences(said: Fields) -> list[str]:
    return [clipped(each, 300).rstrip(".") for each in said.values("why") if isinstance(each, str)]


def _doubts(result: Fields, name: str, place: Place) -> list[str]:
    batch = result.count("batch", 1)
    return [
        f"{place.name}: the {title} by {name} at batch {batch} is not to be believed: {doubt}."
        for phase, title in PHASES.items()
        if (doubt := doubt_of(result.object(phase)))
    ]


def _output(
    result: Fields, config: Fields, both: tuple[Subject, Subject], form: str, setup: str, place: Place
) -> list[Claim]:
    """Output tokens a second, one batch after the other."""
    claims = []
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        times = [result.object(phase).object(name).number("median") for phase in PHASES]
        claims += rates(
            subject, form, result.count("batch", 1), config.count("tokens", 1), times, place, setup, "one batch"
        )
    if any(doubt_of(result.object(phase)) for phase in PHASES):
        return [replace(each, figure=replace(each.figure, believed=False)) for each in claims]
    return claims


def rates(
    subject: Subject, form: str, batch: int, tokens: int, times: Sequence[float], place: Place, setup: str, what: str
) -> list[Claim]:
    """Output tokens and requests a second, by the median ``times`` of the first token and of each of ``tokens`` more;
    none where the clock was too coarse for them. ``what`` is answered one after the other."""
    ttft, tpot = times
    if ttft <= 0 or tpot <= 0:
        return []
    how = f"from the medians, {what} after the other, without a server"
    found = zip(("tokens_per_second", "requests_per_second"), throughput(batch, tokens, ttft, tpot), strict=True)
    return [
        claim
        for metric, rate in found
        if math.isfinite(rate)
        for claim in measured(subject, form, metric, rate, place, setup, how)
    ]


def _energy(
    data: Fields, both: tuple[Subject, Subject], form: str, base: str, place: Place
) -> tuple[list[Claim], list[str]]:
    """Joules a token where they were measured or estimated, else why not."""
    said = data.maybe_object("energy")
    if said is None:
        return [], []
    claims = []
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        spent = said.maybe_object(name)
        joules = None if spent is None else spent.maybe("joules_per_token")
        if joules is not None:
            status = MEASURED if said.text("status", MEASURED) == MEASURED else ESTIMATED
            how = ", ".join(filter(None, (said.text("method", ""), said.text("scope", ""))))
            # What a sensor measured and what was reckoned from watts never stand in one column.
            setup = f"{base}, {status}, {how}"
            figure = Figure(joules, status, how=how, files=(place.name,))
            claims.append(Claim(subject, form, "joules_per_token", figure, setup))
    if claims:
        return claims, []
    return [], [f"Energy in {place.name}: {said.text('why', 'no reason was given').rstrip('.')}."]


def _facts(data: Fields) -> list[tuple[str, str]]:
    machine, config = data.object("machine"), data.object("config")
    told = [f"{name} {machine.text(name)}" for name in ("os", "python", "torch", "transformers") if name in machine]
    runs = f"{config.count('repeats')} runs of each after {config.count('warmup')} that are not counted"
    seed = f", seed {config.count('seed')}" if "seed" in config else ""
    return [
        ("machine of the bench", machine_words(machine)),
        ("versions of the bench", ", ".join(told)),
        ("bench", runs + seed),
    ]
