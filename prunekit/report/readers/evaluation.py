"""What ``prunekit eval`` found: loss on texts, beside the dense model, and what both write."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from prunekit.evaluation.verdict import WORDS, word_of
from prunekit.report.facts.claims import CHECKPOINT, EXACT, MEASURED, Claim, Example, Figure, Judged, Reading, Subject
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.judging import bounds, checked_word, half_width
from prunekit.report.readers.place import Place, exact, machine_words, measured, text_setup

KIND = "evaluation"


def recognises(data: Mapping[str, Any]) -> bool:
    models = data.get("models")
    if isinstance(models, list) and "baseline" in data:
        return bool(models) and all(isinstance(each, dict) and "results" in each for each in models)
    return "model" in data and "results" in data and "baseline" in data


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is damaged."""
    models = list(data.objects("models")) if "models" in data else [data]
    parts = [_one(each, data, place) for each in models]
    return Reading(
        KIND,
        tuple(each for part in parts for each in part.subjects),
        tuple(each for part in parts for each in part.claims),
        tuple(each for part in parts for each in part.verdicts),
        examples=tuple(each for part in parts for each in part.examples),
        facts=tuple(dict.fromkeys(each for part in parts for each in part.facts)),
        not_measured=tuple(dict.fromkeys(each for part in parts for each in part.not_measured)),
    )


def _one(model: Fields, whole: Fields, place: Place) -> Reading:
    origin = model.maybe_object("origin")
    fingerprint, plan = (origin.maybe_text("fingerprint"), origin.maybe_text("plan_sha256")) if origin else (None, None)
    subject = Subject(model.text("model"), None, fingerprint, plan)
    name = model.maybe_text("baseline")
    dense = None
    if name is not None:
        dense = Subject(name, True, origin.maybe_text("baseline_fingerprint") if origin else None)
        subject = replace(subject, dense=False)
    claims: list[Claim] = []
    words: list[tuple[str, str]] = []
    lost: list[str] = []
    for result in model.objects("results"):
        setup = _setup(result, model, origin)
        claims += _claims(result, subject, dense, setup, place)
        text = result.text("text")
        added = result.maybe("nll_increase", -1e300)
        if added is not None:
            words.append((word_of(added, result.maybe("agreement", most=1)), text))
        elif dense is not None:
            lost.append(f"Loss added by {subject.name} on {text}: the two models read it as different tokens.")
    for metric in ("parameters", "share_of_blocks"):
        if metric in model:
            kept = model.number(metric)
            shown = "blocks_share" if metric == "share_of_blocks" else metric
            claims.append(exact(subject, CHECKPOINT, shown, kept, place))
    if dense is not None and "baseline_parameters" in whole:
        claims.append(exact(dense, CHECKPOINT, "parameters", whole.number("baseline_parameters"), place))
    subjects = ((subject, CHECKPOINT), *(((dense, CHECKPOINT),) if dense else ()))
    return Reading(
        KIND,
        subjects,
        tuple(claims),
        _verdicts(model, subject, words, place),
        examples=(*_worst(model, subject, place), *_examples(model, subject, place)),
        facts=tuple(_facts(model, origin)),
        not_measured=tuple(lost),
    )


def _setup(result: Fields, model: Fields, origin: Fields | None) -> str:
    text = result.text("text")
    digests = origin.maybe_object("token_ids_sha256") if origin else None
    digest = digests.maybe_text(text) if digests else None
    return text_setup(result, text, "tokens_seen", f"{model.text('dtype')} on {model.text('device')}", digest)


def _claims(result: Fields, subject: Subject, dense: Subject | None, setup: str, place: Place) -> list[Claim]:
    windows = result.count("windows")
    how = f"{result.count('tokens_predicted'):,} tokens predicted in {windows:,} windows"
    claims: list[Claim] = []
    added = result.maybe("nll_increase", -1e300)
    if added is not None and dense is not None:
        half = half_width(result.maybe("nll_increase_standard_error"), windows)
        low, high = (None, None) if half is None else (added - half, added + half)
        figure = Figure(added, MEASURED, low, high, how=how, files=(place.name,))
        claims.append(Claim(subject, CHECKPOINT, "loss_added", figure, setup, dense))
        zero = Figure(0.0, EXACT, how="the model that others are compared with", files=(place.name,))
        claims.append(Claim(dense, CHECKPOINT, "loss_added", zero, setup, dense))
        claims.append(Claim(dense, CHECKPOINT, "kl", zero, setup, dense))
        one = Figure(1.0, EXACT, how=zero.how, files=(place.name,))
        claims.append(Claim(dense, CHECKPOINT, "top1_agreement", one, setup, dense))
        kl, same = result.maybe("kl", -1e-3), result.maybe("agreement", most=1)
        error = result.maybe("kl_standard_error")
        ends = bounds(kl, half_width(error, windows), least=0.0)
        claims += measured(subject, CHECKPOINT, "kl", kl, place, setup, how, dense, ends)
        ends = bounds(same, half_width(result.maybe("agreement_standard_error"), windows), least=0.0, most=1.0)
        claims += measured(subject, CHECKPOINT, "top1_agreement", same, place, setup, how, dense, ends)
    perplexity, error = result.maybe("perplexity"), half_width(result.maybe("nll_standard_error"), windows)
    ends = None
    if perplexity is not None and error is not None and error < 50:
        ends = perplexity * math.exp(-error), perplexity * math.exp(error)
    claims += measured(subject, CHECKPOINT, "perplexity", perplexity, place, setup, how, ends=ends)
    if dense is not None:
        claims += measured(dense, CHECKPOINT, "perplexity", result.maybe("baseline_perplexity"), place, setup, how)
    return claims


def _verdicts(model: Fields, subject: Subject, words: list[tuple[str, str]], place: Place) -> tuple[Judged, ...]:
    """As the file says, else by the scale of today."""
    said = model.maybe_object("verdict")
    if said is not None:
        word, text = checked_word(said, "verdict"), said.text("text", "")
    elif words:
        word = max((each for each, _ in words), key=WORDS.index)
        text = next(text for each, text in words if each == word)
    else:
        return ()
    return (Judged(subject, CHECKPOINT, word, text, place.name),)


def _examples(model: Fields, subject: Subject, place: Place) -> tuple[Example, ...]:
    """Of each text come as many as of every other, in their order."""
    shown = list(model.objects("examples"))
    texts = [each.text("text") for each in model.objects("generation")]
    each_has = len(shown) // len(texts) if texts and len(shown) % len(texts) == 0 else 0
    return tuple(
        Example(
            subject,
            (example.text("text"),)
            if example.maybe_text("text")
            else (texts[number // each_has],)
            if each_has
            else tuple(texts),
            example.prose("prompt"),
            example.prose("model"),
            example.prose("baseline") if "baseline" in example else None,
            place.name,
        )
        for number, example in enumerate(shown)
    )


def _worst(model: Fields, subject: Subject, place: Place) -> Iterator[Example]:
    """Beginnings after which the model is farthest from the dense one."""
    for said in model.objects("worst"):
        texts, dense = (said.text("text"),), said.prose("baseline")
        kl = said.maybe("kl", -1e-3)
        kl = math.inf if kl is None else kl
        yield Example(subject, texts, said.prose("prompt"), said.prose("model"), dense, place.name, kl)


def _facts(model: Fields, origin: Fields | None) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    if origin is not None:
        machine = origin.maybe_object("machine")
        rows.append(("machine of the evaluation", machine_words(machine)))
        if machine is not None:
            told = [f"{name} {machine.text(name)}" for name in ("python", "torch", "transformers") if name in machine]
            rows.append(("versions of the evaluation", ", ".join(told)))
        digests = origin.maybe_object("token_ids_sha256")
        if digests is not None:
            rows += [
                (f"SHA-256 of the token ids of {clipped(name)}", digests.text(name)) for name in list(digests.data)[:50]
            ]
    return [row for row in rows if row[1]]
