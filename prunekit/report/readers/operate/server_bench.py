"""What ``prunekit bench-server`` measured: times under each load, and the highest load within the SLO."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from prunekit.report.facts.claims import (
    ASKED,
    CHECKPOINT,
    ESTIMATED,
    EXACT,
    LOAD,
    MEASURED,
    OWN_LENGTHS,
    Claim,
    Figure,
    Proof,
    Reading,
    Subject,
)
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.operate.capacity import capacity_words, slo_words, within
from prunekit.report.readers.operate.doubts import doubts, lost
from prunekit.report.readers.operate.joules import energy_claims, lost_energy
from prunekit.report.readers.operate.loads import load_sheet
from prunekit.report.readers.operate.money import cost_claims, cost_sheet
from prunekit.report.readers.operate.versions import SIDES, check_version
from prunekit.report.readers.place import Place, measured
from prunekit.report.readers.servers.load import served, served_form

KIND = "load test by prunekit bench-server"
FORMAT = "prunekit-server-bench"
# Names in the file, and those of the metrics at p50, p95 and p99.
_TIMES = {
    "ttft": {0.5: "ttft", 0.95: "ttft_p95", 0.99: "ttft_p99"},
    "tpot": {0.5: "tpot", 0.95: "tpot_p95", 0.99: "tpot_p99"},
    "e2e": {0.5: "latency", 0.95: "latency_p95", 0.99: "latency_p99"},
}
_RATIOS = {"ttft": "ttft_ratio", "tpot": "tpot_ratio"}


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == FORMAT


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    check_version(data, "prunekit bench-server")
    places = _places(data.object("served"))
    base = _base(data)
    claims: list[Claim] = []
    for load in data.objects("loads", 200):
        is_natural = load.object("endpoint").object("load").text("kind") == "natural"
        answers = OWN_LENGTHS if is_natural else ASKED
        claims += [replace(each, answers=answers) for each in _load(load, places, base, place)]
    claims += [replace(each, answers=ASKED) for each in _capacity(data, places, base, place)]
    subjects = tuple(places.values())
    name = places["endpoint"][0].name
    return Reading(
        KIND,
        subjects,
        tuple(claims),
        facts=tuple(_facts(data)),
        proofs=(_proof(data, places, place),),
        not_measured=tuple(dict.fromkeys((*lost(data, name), *lost_energy(data, place)))),
        warnings=tuple(dict.fromkeys(doubts(data, place))),
    )


def _places(said: Fields) -> dict[str, tuple[Subject, str]]:
    """The model and form of each side. A file of weights is known by its own hash until an export tells of it."""
    sides = [side for side in SIDES if side == "endpoint" or side in said]
    told = {side: said.object(side) for side in sides}
    names = {side: served(_name(each)).name for side, each in told.items()}
    made = {}
    for side, each in told.items():
        identity = each.maybe_object("identity")
        digest = None if identity is None else identity.maybe_text("model_sha256")
        form = CHECKPOINT if identity is None else served_form(identity.text("server", ""))
        name = names[side]
        # Two servers may call different models by one name.
        if digest is None and len(set(names.values())) < len(names):
            name = f"{name} ({side})"
        dense = side == "baseline" if len(sides) == 2 else None
        made[side] = (Subject(name, dense, digest), form)
    return made


def _name(said: Fields) -> str:
    identity = said.maybe_object("identity")
    return said.text("model") if identity is None else identity.text("model", said.text("model"))


def _base(data: Fields) -> str:
    """What must be equal for figures to be compared, but the load."""
    work, config = data.object("workload"), data.object("config")
    machine = data.object("machine").text("cpu", "CPU not told")
    where = {_where(data.object("served").object(side)) for side in SIDES if side in data.object("served")}
    lengths = f"prompts of about {config.count('prompt')}, {config.count('tokens')} tokens answered"
    parts = [
        "bench-server",
        f"{work.text('label')}, {lengths}" if work.text("kind", "") == "synthetic" else work.text("label"),
        *sorted(each for each in where if each),
        f"client on {machine}",
    ]
    return clipped(", ".join(parts), 500)


def _where(said: Fields) -> str:
    identity = said.maybe_object("identity")
    if identity is None:
        return ""
    words = f"{identity.text('server')} {identity.text('version', '')}".strip()
    threads, slots = identity.maybe("threads"), identity.maybe("slots")
    words = words if threads is None else f"{words} with {threads:.0f} thread{'s' * (threads != 1)}"
    return words if slots is None else f"{words}, {slots:.0f} request{'s' * (slots != 1)} at a time"


def _load(said: Fields, places: Mapping[str, tuple[Subject, str]], base: str, place: Place) -> Iterator[Claim]:
    """The claims of one load."""
    setup = f"{base}, {said.text('load')}"
    kind = said.object("endpoint").object("load").text("kind")
    for side, (subject, form) in places.items():
        result = said.object(side)
        if not result.count("requests"):
            continue
        is_void = bool(result.texts("void"))
        for name, metrics in _TIMES.items():
            yield from _quantiles(result.objects(name, 50), metrics, subject, form, setup, place, is_void)
        requests = result.count("requests")
        shares = {
            "requests_per_second": result.maybe("requests_per_second"),
            "tokens_per_second": result.maybe("tokens_per_second"),
            "goodput": result.maybe("goodput"),
            "output_tokens": result.maybe("tokens"),
            "failed_share": min(1.0, result.count("failed") / requests),
        }
        # Answers of the other loads end where they were told to.
        if kind == "natural":
            shares["truncated_share"] = result.maybe("truncated", most=1)
        for metric, value in shares.items():
            yield from _doubted(measured(subject, form, metric, value, place, setup, f"{requests:,} requests"), is_void)
        spent = said.maybe_object("energy")
        if spent is not None:
            yield from _doubted(list(energy_claims(spent.object(side), (subject, form), setup, place)), is_void)
    if "baseline" in places:
        yield from _ratios(said, places, setup, kind, place)


def _quantiles(
    said: Iterator[Fields],
    metrics: Mapping[float, str],
    subject: Subject,
    form: str,
    setup: str,
    place: Place,
    is_void: bool,
) -> Iterator[Claim]:
    """Percentiles that so many requests have; one that has no upper bound is none."""
    for each in said:
        metric = metrics.get(each.number("share", most=1))
        value, low, high = (each.maybe(name) for name in ("value", "low", "high"))
        if metric is None or value is None or (high is None and metric not in ("ttft", "tpot", "latency")):
            continue
        if low is None or high is None:
            low = high = None
        how = f"{each.count('count'):,} requests; order statistics, each bound holds with 95 %"
        figure = Figure(value, MEASURED, low, high, how, (place.name,), "90 % interval", not is_void)
        yield Claim(subject, form, metric, figure, setup)


def _ratios(
    said: Fields, places: Mapping[str, tuple[Subject, str]], setup: str, kind: str, place: Place
) -> Iterator[Claim]:
    (subject, form), (dense, dense_form) = places["endpoint"], places["baseline"]
    is_void = any(said.object(side).texts("void") for side in SIDES)
    ratios = said.object("ratios")
    names = {**_RATIOS, "tokens": "length_ratio"} if kind == "natural" else _RATIOS
    for name, metric in names.items():
        found = ratios.maybe_object(name)
        figure = None if found is None else ratio_figure(found, place, is_void)
        if figure is not None:
            yield Claim(subject, form, metric, figure, setup, dense)
            one = Figure(1.0, EXACT, how="the model that others are compared with", files=(place.name,))
            yield Claim(dense, dense_form, metric, one, setup, dense)


def ratio_figure(said: Fields, place: Place, is_void: bool = False) -> Figure | None:
    """A ratio of neighbouring blocks; None where there is none."""
    value, low, high = (said.maybe(name) for name in ("value", "low", "high"))
    if value is None:
        return None
    blocks = said.count("count")
    how = f"geometric mean of {blocks} blocks in turns" if blocks > 1 else "of one block: too few for an interval"
    if low is None or high is None:
        low = high = None
    return Figure(value, MEASURED, low, high, how, (place.name,), believed=not is_void)


def _doubted(claims: Sequence[Claim], is_void: bool) -> Iterator[Claim]:
    for each in claims:
        yield replace(each, figure=replace(each.figure, believed=False)) if is_void else each


def _capacity(data: Fields, places: Mapping[str, tuple[Subject, str]], base: str, place: Place) -> Iterator[Claim]:
    """The highest load within the SLO, and its ratio to the baseline's."""
    said = data.maybe_object("capacity")
    if said is None:
        return
    setup = f"{base}, within {slo_words(said)}"
    found = dict(zip(places, said.objects("endpoints", 2), strict=False))
    for side, each in found.items():
        subject, form = places[side]
        figure = within(each, place)
        if figure is None or figure.value is None:
            continue
        yield Claim(subject, form, "slo_load", figure, setup)
        length = _length(data, side)
        if length is not None:
            how = f"requests/s within the SLO, times {length:.3g} tokens an answer as measured"
            tokens = Figure(figure.value * length, ESTIMATED, how=how, files=(place.name,), bound=figure.bound)
            yield Claim(subject, form, "tokens_per_second", tokens, setup)
    yield from cost_claims(data, places, setup, place)
    ratio = said.maybe_object("ratio")
    figure = None if ratio is None or "baseline" not in places else ratio_figure(ratio, place)
    if figure is not None:
        (subject, form), (dense, dense_form) = places["endpoint"], places["baseline"]
        yield Claim(subject, form, "slo_load_ratio", figure, setup, dense)
        one = Figure(1.0, EXACT, how="the model that others are compared with", files=(place.name,))
        yield Claim(dense, dense_form, "slo_load_ratio", one, setup, dense)


def _length(data: Fields, side: str) -> float | None:
    """Mean tokens of an answer under the loads of the kind that is searched: open, else any but natural."""
    found: dict[str, float | None] = {}
    for load in data.objects("loads", 200):
        result = load.object(side)
        found.setdefault(result.object("load").text("kind"), result.maybe("tokens"))
    return found.get("open") or found.get("closed") or found.get("trace")


def _proof(data: Fields, places: Mapping[str, tuple[Subject, str]], place: Place) -> Proof:
    subject, form = places["endpoint"]
    said = data.maybe_object("capacity")
    word, passes, reasons = capacity_words(said, tuple(places))
    names = {side: each.name for side, (each, _) in places.items()}
    stopped = data.maybe_text("stopped")
    if stopped:
        reasons = (*reasons, f"The test ended early: {stopped.rstrip('.')}.")
    if data.flag("believed") is False:
        word, passes = f"{word}, not to be believed", None
    return Proof(
        subject,
        form,
        LOAD,
        word,
        passes,
        place.name,
        reasons,
        sheets=tuple(each for each in (cost_sheet(data, names), load_sheet(data, names)) if each is not None),
    )


def _facts(data: Fields) -> Iterator[tuple[str, str]]:
    work, config, machine = data.object("workload"), data.object("config"), data.object("machine")
    yield "workload of the load test", work.text("label")
    yield (
        "load test",
        f"{config.count('requests'):,} requests of each model at each load, {config.count('blocks')} blocks in turns",
    )
    told = [f"{name} {machine.text(name)}" for name in ("os", "python", "httpx", "prunekit") if name in machine]
    yield "client of the load test", ", ".join(filter(None, (machine.text("cpu", ""), *told)))
    for side in SIDES:
        each = data.object("served").maybe_object(side)
        if each is None:
            continue
        identity = each.maybe_object("identity")
        where = _where(each) or f"at {each.text('label', 'an address that is not told')}"
        context = None if identity is None else identity.maybe("context")
        more = f", context of {context:,.0f} tokens" if context else ""
        yield f"server of the {side}", f"{_name(each)}, {where}{more}"
        if each.flag("warmup_steady") is not None:
            steady = "steady" if each.flag("warmup_steady") else "not steady"
            yield f"warm-up of the {side}", f"{each.count('warmup_requests'):,} requests, {steady}"
