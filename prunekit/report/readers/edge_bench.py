"""What bench.py of an export wrote on the device itself: times of this one export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prunekit.profiling.edge import EdgeBench, edge_of, is_edge
from prunekit.report.facts.claims import Claim, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.bench import PHASES, doubt_of, rates, summary_of
from prunekit.report.readers.place import Place, form_of, machine_words, measured

KIND = "bench of an export on its device"


def recognises(data: Mapping[str, Any]) -> bool:
    return is_edge(data)


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    made = edge_of(data.data, place.name)
    export = {name: clipped(value) for name, value in made.export.items()}
    subject = Subject(export["name"], None, export["fingerprint"])
    target, dtype = export["target"], export["dtype"]
    form = f"hf {dtype}" if target == "hf" else form_of(target, dtype)
    tokens = made.config["new_tokens"]
    base = f"{_machine(made)}, prompt of {made.config['prompt_tokens']}, {tokens} tokens decoded"
    setup = f"{base}, batch 1"
    claims: list[Claim] = []
    warnings = []
    for phase, title in PHASES.items():
        said = data.object(phase)
        doubt = doubt_of(said)
        claims.append(Claim(subject, form, phase, summary_of(said, place, doubt), setup))
        if doubt:
            warnings.append(f"{place.name}: the {title} by {subject.name}, {form}, is not to be believed: {doubt}.")
    times = (made.ttft.median, made.tpot.median)
    claims += rates(subject, form, 1, tokens, times, place, setup, "one prompt")
    if warnings:
        claims = [replace(each, figure=replace(each.figure, believed=False)) for each in claims]
    how = clipped(data.text("peak_how", ""))
    claims += measured(subject, form, "peak_bytes", made.peak_bytes, place, f"{base}, process of bench.py", how)
    told = [f"{clipped(name)} {clipped(version)}" for name, version in made.packages.items()]
    facts = (
        ("machine of bench.py", _machine(made)),
        ("versions of bench.py", ", ".join(told)),
    )
    return Reading(
        KIND,
        ((subject, form),),
        tuple(claims),
        facts=tuple(row for row in facts if row[1]),
        warnings=tuple(warnings),
    )


def _machine(made: EdgeBench) -> str:
    """In the words of other files that were measured on the same machine with as many threads."""
    threads = made.config["threads"]
    words = machine_words(Fields({**made.machine, "device": made.device, "threads": threads}, "bench.json", "machine"))
    # Earlier versions left the number to the runtime, and did not learn it.
    return words if threads or made.device != "cpu" else f"{words}, as many threads as the runtime chose"
