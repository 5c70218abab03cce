"""What ``prunekit bench`` timed: the first token and each further one, of a pruned model and its dense one in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
_PHASES = ("ttft", "tpot")
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
        for phase in _PHASES:
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
    return Subject(said.text("name"), dense, said.maybe_text("fingerprint"))


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
    return clipped("; ".join(_sentences(said)) or "the bench says so", 500)


def _sentences(said: Fields) -> list[str]:
    found = []
    for each in said.values("why"):
        words = each.get("sentence", each.get("why")) if isinstance(each, Mapping) else each
        found += [clipped(words, 300).rstrip(".")] if isinstance(words, str) else []
    return found


def _doubts(result: Fields, name: str, place: Place) -> list[str]:
    titles = {"ttft": "time of the first token", "tpot": "time of each further token"}
    batch = result.count("batch", 1)
    return [
        f"{place.name}: the {titles[phase]} by {name} at batch {batch} is not to be believed: {doubt}."
        for phase in _PHASES
        if (doubt := doubt_of(result.object(phase)))
    ]


def _output(
    result: Fields, config: Fields, both: tuple[Subject, Subject], form: str, setup: str, place: Place
) -> list[Claim]:
    """Output tokens a second, one batch after the other."""
    claims = []
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        ttft, tpot = (result.object(phase).object(name).number("median") for phase in _PHASES)
        if ttft <= 0 or tpot <= 0:
            continue
        rates = throughput(result.count("batch", 1), config.count("tokens", 1), ttft, tpot)
        how = "from the medians, one batch after the other, without a server"
        for metric, rate in zip(("tokens_per_second", "requests_per_second"), rates, strict=True):
            if not math.isfinite(rate):
                continue
            claims += measured(subject, form, metric, rate, place, setup, how)
    if any(doubt_of(result.object(phase)) for phase in _PHASES):
        return [replace(each, figure=replace(each.figure, believed=False)) for each in claims]
    return claims


def _energy(
    data: Fields, both: tuple[Subject, Subject], form: str, base: str, place: Place
) -> tuple[list[Claim], list[str]]:
    """Joules a token where they were measured, else why not."""
    claims, lost = [], []
    for subject, name in zip(both, ("dense", "pruned"), strict=True):
        said = data.object(name).maybe_object("energy") or (data.maybe_object("energy") or Fields({}, place.name))
        said = said.maybe_object(name) or said
        joules = said.maybe("joules_per_token")
        if joules is not None:
            status = said.text("status", MEASURED)
            words = (said.text("method", ""), said.text("scope", ""))
            figure = Figure(
                joules, status if status in (MEASURED, ESTIMATED) else ESTIMATED, how=", ".join(filter(None, words))
            )
            figure = Figure(figure.value, figure.status, how=figure.how, files=(place.name,))
            # What a sensor measured and what was reckoned from watts never stand in one column.
            claims.append(Claim(subject, form, "joules_per_token", figure, f"{base}, {figure.status}, {figure.how}"))
        elif "status" in said:
            why = said.text("why", said.text("reason", said.text("method", "no reason was given")))
            lost.append(f"Energy in {place.name}: {why.rstrip('.')}.")
    return claims, list(dict.fromkeys(lost))


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
