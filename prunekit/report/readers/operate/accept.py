"""What ``prunekit accept`` found on the user's own records: wrong answers, flips, lengths, and the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prunekit.report.facts.claims import (
    ACCEPTANCE,
    INTERVAL,
    MEASURED,
    Case,
    Claim,
    Figure,
    Proof,
    Reading,
    Sheet,
    Subject,
)
from prunekit.report.facts.fields import Fields, clipped
from prunekit.report.readers.operate.versions import bare, check_version
from prunekit.report.readers.place import Place, exact, machine_words, version_words
from prunekit.report.readers.servers.load import served, served_form
from prunekit.utils.names import readable

KIND = "acceptance test"
FORMAT = "prunekit-accept"
WORDS = {"accepted": True, "refused": False, "too few to tell": None, "no verdict": None}
_HOLDS = {True: "holds", False: "broken", None: "too few to tell"}
_MOST_GROUPS, _MOST_CASES = 200, 50
_LIMITS = ("margin", "alpha", "power", "max_error_rate", "max_flips", "max_length_ratio", "max_truncated", "max_failed")
_MOST_TEXT = 4000


def recognises(data: Mapping[str, Any]) -> bool:
    return data.get("format") == FORMAT


def read(data: Fields, place: Place) -> Reading:
    """Raises PrunekitError where it is of another version or damaged."""
    check_version(data, "prunekit accept")
    told = _subjects(data)
    (subject, form), (dense, _) = told
    word = data.text("verdict")
    if word not in WORDS:
        raise data.wrong("verdict", f"one of {', '.join(WORDS)}")
    proof = Proof(
        subject,
        form,
        ACCEPTANCE,
        word,
        WORDS[word],
        place.name,
        data.texts("reasons", 500),
        sheets=tuple(_sheets(data, subject, dense)),
        cases=tuple(map(_case, data.objects("worst", _MOST_CASES))),
    )
    return Reading(
        KIND,
        told,
        tuple(_claims(data, told, place)),
        facts=tuple(row for row in _facts(data) if row[1]),
        proofs=(proof,),
        not_measured=tuple(_lost(data, subject)),
        warnings=tuple(_warnings(data, word, subject, place)),
    )


_Told = tuple[tuple[Subject, str], tuple[Subject, str]]


def _subjects(data: Fields) -> _Told:
    """The smaller model and the baseline with what of each ran; of servers that call both alike, told apart. A file
    that was served is known by its own hash, as it is for a load test."""
    told = [data.object(name) for name in ("smaller", "baseline")]
    names = [served(each.text("model")).name if "endpoint" in each else bare(each.text("model")) for each in told]
    digests = [each.maybe_text("fingerprint") or each.maybe_text("model_sha256") for each in told]
    forms = [served_form(each.maybe_text("server") or "") for each in told]
    if names[0] == names[1] and None in digests:
        names[1] = f"{names[1]} (baseline)"
    return (Subject(names[0], False, digests[0]), forms[0]), (Subject(names[1], True, digests[1]), forms[1])


def _setup(data: Fields) -> str:
    records = data.object("records")
    weighted = ", weighted" if records.flag("weighted") else ""
    digest = records.text("sha256", "")
    return f"your {records.count('count'):,} records{weighted}" + (f", SHA-256 {digest[:12]}" if digest else "")


def _figure(said: Fields, place: Place, least: float = 0.0, interval: str = INTERVAL) -> Figure | None:
    value, low, high = (said.maybe(name, least) for name in ("value", "low", "high"))
    if value is None:
        return None
    if low is None or high is None:
        low = high = None
    return Figure(value, MEASURED, low, high, said.text("how", ""), (place.name,), interval)


def _claims(data: Fields, told: _Told, place: Place) -> Iterator[Claim]:
    seen, setup = data.object("all"), _setup(data)
    (subject, form), (dense, _) = told
    for (who, ran), prefix in zip(told, ("", "baseline_"), strict=True):
        for metric, name in (("error_rate", "error_rate"), ("truncated_share", "truncated")):
            figure = _figure(seen.object(prefix + name), place)
            if figure is not None:
                yield Claim(who, ran, metric, figure, setup)
    alpha = data.object("policy").number("alpha", most=0.5)
    for metric, name, least, interval in (
        ("error_rise", "difference", -1.0, f"{1 - 2 * alpha:.0%} interval".replace("%", " %")),
        ("flips", "flips", 0.0, INTERVAL),
        ("length_ratio", "length_ratio", 0.0, INTERVAL),
    ):
        figure = _figure(seen.object(name), place, least, interval)
        if figure is not None:
            own = f"{setup}, in {seen.text('unit')}" if metric == "length_ratio" else setup
            yield Claim(subject, form, metric, figure, own, dense)
    for (who, ran), name in zip(told, ("smaller", "baseline"), strict=True):
        model = data.object(name)
        if "parameters" in model:
            yield exact(who, ran, "parameters", model.number("parameters"), place)


def _sheets(data: Fields, subject: Subject, dense: Subject) -> Iterator[Sheet]:
    seen = data.object("all")
    yield Sheet(f"All {seen.count('records'):,} records", ("", subject.name, dense.name, "both"), tuple(_rows(seen)))
    rows = [
        (each.text("name"), each.text("group", "all"), _HOLDS[each.flag("holds")], each.text("sentence"))
        for each in data.objects("conditions", 500)
    ]
    if rows:
        yield Sheet("What the policy asks", ("Condition", "Group", "", "Measured"), tuple(rows))
    groups = data.object("groups") if "groups" in data else None
    if groups is not None and groups.data:
        if len(groups.data) > _MOST_GROUPS:
            groups.values("groups")
        made = [_group(name, groups.object(name)) for name in list(groups.data)[:_MOST_GROUPS] if name in groups]
        heads = ("Group", "Records", subject.name, dense.name, "rise", "right to wrong", "wrong to right")
        more = len(groups.data) - len(made)
        yield Sheet(f"By group{f' ({more} more are not shown)' if more else ''}", heads, tuple(made))


def _rows(seen: Fields) -> Iterator[tuple[str, ...]]:
    yield "wrong answers", _share(seen.object("error_rate")), _share(seen.object("baseline_error_rate")), ""
    yield "rise of wrong answers, percentage points", "", "", _points(seen.object("difference"))
    test = seen.maybe_object("noninferiority")
    if test is not None:
        enough = "enough" if test.flag("enough") else "too few"
        shown = "shown" if test.flag("shown") else "not shown"
        yield (
            f"a rise below {100 * test.number('margin', most=1):g} points (the margin)",
            "",
            "",
            f"{shown}, p = {test.number('p', most=1):.2g}, one-sided, against {test.number('alpha', most=1):g}; "
            f"{seen.count('records'):,} records are {enough}, about {test.number('needed'):,.0f} are needed",
        )
    flips = f"{seen.count('worse'):,} right to wrong, {seen.count('better'):,} wrong to right"
    yield "flips", "", "", f"{flips}; McNemar's exact p = {seen.number('mcnemar_p', most=1.0 + 1e-9):.2g}"
    ratio = seen.object("length_ratio")
    yield f"length of answers in {seen.text('unit')}, smaller / baseline", "", "", _ratio(ratio)
    yield "answers cut off", _share(seen.object("truncated")), _share(seen.object("baseline_truncated")), ""
    yield (
        "no answer, or none that could be judged",
        f"{seen.count('failed'):,}",
        f"{seen.count('baseline_failed'):,}",
        "",
    )


def _group(name: str, seen: Fields) -> tuple[str, ...]:
    rates = [_share(seen.object(key)) for key in ("error_rate", "baseline_error_rate")]
    flips = [f"{seen.count(key):,}" for key in ("worse", "better")]
    return clipped(name), f"{seen.count('records'):,}", *rates, _points(seen.object("difference")), *flips


def _share(said: Fields) -> str:
    value, low, high = (said.maybe(name, most=1.0 + 1e-9) for name in ("value", "low", "high"))
    if value is None:
        return "not measured"
    return f"{value:.1%}" if low is None or high is None else f"{value:.1%} ({low:.1%} to {high:.1%})"


def _points(said: Fields) -> str:
    value, low, high = (said.maybe(name, -1.0 - 1e-9, 1.0 + 1e-9) for name in ("value", "low", "high"))
    if value is None:
        return "not measured"
    between = "" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return f"{100 * value:+.1f}{between}"


def _ratio(said: Fields) -> str:
    value, low, high = (said.maybe(name) for name in ("value", "low", "high"))
    if value is None:
        return f"not measured: {said.text('how', 'no reason was given')}"
    return f"{value:.2f}" if low is None or high is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def _case(said: Fields) -> Case:
    """A record that went from right to wrong; its texts are there where accept was told to keep them."""
    group = said.maybe_text("group")
    words = f"{said.text('id')}{f', group {group}' if group else ''}: {said.text('why')}"
    texts = said.maybe_object("texts")
    return Case(words, () if texts is None else tuple(_texts(texts)))


def _texts(said: Fields) -> Iterator[tuple[str, str]]:
    for name, title in (
        ("asked", "asked"),
        ("references", "expected"),
        ("baseline", "dense model"),
        ("answer", "model"),
    ):
        if name in said:
            yield title, _shown(said.data[name], said, name)
        elif name in ("baseline", "answer"):
            yield title, "(no answer)"


def _shown(value: Any, said: Fields, name: str) -> str:
    """A text; of messages and lists, their texts one below the other."""
    if isinstance(value, Mapping) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str):
        text = f"{value['role']}: {value['content']}"
    elif isinstance(value, Mapping):
        parts = [f"{key}: {each}" if isinstance(each, str) else str(key) for key, each in list(value.items())[:50]]
        text = "\n".join(parts)
    elif isinstance(value, list):
        text = "\n".join(_shown(each, said, name) for each in value[:50])
    elif isinstance(value, bool) and name == "references":
        # A JSON schema may be true or false.
        text = str(value).lower()
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        text = str(value)
    else:
        raise said.wrong(name, "a text or a list of texts")
    return readable(text if len(text) <= _MOST_TEXT else text[:_MOST_TEXT] + " …")


def _facts(data: Fields) -> Iterator[tuple[str, str]]:
    policy, run = data.object("policy"), data.object("run")
    limits = [f"{name} {policy.number(name):g}" for name in _LIMITS if name in policy]
    given = "of the user" if policy.flag("given") else "of prunekit: none was given"
    yield "policy of acceptance", f"{given}; {', '.join(limits)}; too few: {policy.text('too_few', 'refuse')}"
    yield "records of acceptance", _setup(data)
    yield "machine of acceptance", machine_words(run.maybe_object("machine"))
    if "max_new_tokens" in run:
        yield "answers of acceptance", f"greedy, {run.count('max_new_tokens'):,} tokens at most"
    yield "versions of acceptance", version_words(run.maybe_object("versions"))


def _lost(data: Fields, subject: Subject) -> Iterator[str]:
    test = data.object("all").maybe_object("noninferiority")
    if test is not None and not test.flag("shown") and not test.flag("enough"):
        count = data.object("all").count("records")
        yield (
            f"Whether {subject.name} is as good as the dense model on your records: {count:,} are too few; the test "
            f"needs about {test.number('needed'):,.0f}."
        )


def _warnings(data: Fields, word: str, subject: Subject, place: Place) -> Iterator[str]:
    if word == "no verdict":
        reasons = " ".join(data.texts("reasons", 500))
        yield f"{place.name}: there is no verdict on {subject.name}. {clipped(reasons, 500)}".strip()
