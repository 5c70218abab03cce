"""What bench.py of an export wrote on the device itself: times of this one export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.profiling.prices import throughput
from prunekit.report.facts.claims import Claim, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.bench import doubt_of, summary_of
from prunekit.report.readers.place import Place, form_of, machine_words, measured

KIND = "bench of an export on its device"
_VERSION = 1


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == "prunekit-bench-edge"


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    if data.data.get("version") != _VERSION:
        raise PrunekitError(
            f"{place.name} has version {clipped(str(data.data.get('version')))} of its format; this prunekit reads "
            f"version {_VERSION}."
        )
    export, config = data.object("export"), data.object("config")
    subject = Subject(export.text("name"), None, export.text("fingerprint"))
    target = export.text("target")
    form = f"hf {export.text('dtype')}" if target == "hf" else form_of(target, export.text("dtype"))
    lengths = config.count("prompt_tokens", 1), config.count("new_tokens", 1)
    base = f"{_machine(data, config)}, prompt of {lengths[0]}, {lengths[1]} tokens decoded"
    setup = f"{base}, batch 1"
    claims: list[Claim] = []
    warnings = []
    for phase, title in (("ttft", "time of the first token"), ("tpot", "time of each further token")):
        said = data.object(phase)
        doubt = doubt_of(said)
        claims.append(Claim(subject, form, phase, summary_of(said, place, doubt), setup))
        if doubt:
            warnings.append(f"{place.name}: the {title} by {subject.name}, {form}, is not to be believed: {doubt}.")
    ttft, tpot = (data.object(phase).number("median") for phase in ("ttft", "tpot"))
    if ttft > 0 and tpot > 0:
        rates = throughput(1, config.count("new_tokens", 1), ttft, tpot)
        how = "from the medians, one prompt after the other, without a server"
        for metric, rate in zip(("tokens_per_second", "requests_per_second"), rates, strict=True):
            claims += measured(subject, form, metric, rate, place, setup, how)
    if warnings:
        claims = [replace(each, figure=replace(each.figure, believed=False)) for each in claims]
    how = clipped(data.text("peak_how", ""))
    claims += measured(
        subject, form, "peak_bytes", data.maybe("peak_bytes"), place, f"{base}, process of bench.py", how
    )
    packages = data.maybe_object("packages")
    told = [] if packages is None else [f"{clipped(name)} {packages.text(name)}" for name in list(packages.data)[:20]]
    facts = (
        ("machine of bench.py", _machine(data, config)),
        ("versions of bench.py", ", ".join(told)),
    )
    return Reading(
        KIND,
        ((subject, form),),
        tuple(claims),
        facts=tuple(row for row in facts if row[1]),
        warnings=tuple(warnings),
    )


def _machine(data: Fields, config: Fields) -> str:
    """In the words of other files that were measured on the same machine with as many threads."""
    machine = dict(data.object("machine").data)
    machine["device"] = data.text("device", "cpu")
    machine["threads"] = config.data.get("threads", machine.get("logical_cpus")) or machine.get("logical_cpus")
    return machine_words(Fields(machine, data.file, "machine"))
