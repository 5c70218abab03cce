"""The signals of a watch as small tables of words: what is up, since when, and what people said of answers."""

from __future__ import annotations

from collections.abc import Iterator

from prunekit.report.facts.claims import Sheet
from prunekit.report.facts.fields import Fields
from prunekit.report.readers.operate.versions import utc

_MOST_CHANGES = 10
_ENDLESS = -1e300


def watch_sheets(data: Fields) -> Iterator[Sheet]:
    """Signals of the last window, outcomes against their bounds, and the last changes of the verdict."""
    rows = list(_signals(data))
    if rows:
        last = data.maybe_object("last_window")
        title = "Signals" if last is None else f"Signals in window {last.count('window'):,}"
        heads = ("Signal", "Of", "Reference", "Now", "Sum of deviations", "Limit", "")
        yield Sheet(title, heads, tuple(rows))
    outcomes = list(_outcomes(data))
    if outcomes:
        yield Sheet("What people said of answers", ("Share of", "Reference", "So far", "Bound", "How"), tuple(outcomes))
    changes = [
        (f"{each.count('window'):,}", utc(each, "last") or "–", each.text("verdict"), " ".join(each.texts("reasons")))
        for each in data.objects("changes")
    ][-_MOST_CHANGES:]
    if changes:
        yield Sheet("Changes of the verdict", ("Window", "Its last request", "Verdict", "Why"), tuple(changes))


def _signals(data: Fields) -> Iterator[tuple[str, ...]]:
    """Those that are up stand first."""
    last = data.maybe_object("last_window")
    rows = None if last is None else last.object("signals")
    made = []
    for each in data.objects("signals", 200):
        name = each.text("name")
        row = None if rows is None else rows.maybe_object(name)
        null = each.maybe_object("null")
        typical = None if null is None else null.maybe("typical", _ENDLESS)
        told = [None if row is None else row.maybe(key, _ENDLESS) for key in ("value", "sum", "limit")]
        is_up = row is not None and row.flag("active") is True
        made.append(
            (
                not is_up,
                (
                    each.text("title"),
                    each.text("kind"),
                    _figure(typical),
                    _figure(told[0]),
                    *("–" if one is None else f"{one:.1f}" for one in told[1:]),
                    _state(each, row, _since(data, name, told[2]) if is_up else None),
                ),
            )
        )
    yield from (row for _, row in sorted(made, key=lambda each: each[0]))


def _state(signal: Fields, row: Fields | None, since: str | None) -> str:
    status = signal.text("status", "")
    if since is not None:
        return f"up{since}" + ("" if status == "calibrated" else f"; {status}")
    why = signal.maybe_text("reason") or (None if row is None else row.maybe_text("reason"))
    if status == "off" or why:
        return f"off: {why or 'no reason was given'}" if status == "off" else f"not told: {why}"
    return "within its limit" if status == "calibrated" else f"within its limit; {status}"


def _since(data: Fields, name: str, limit: float | None) -> str:
    """Since which window it is up: an alarm lasts from where the sum passes its limit until it is back at 0."""
    first = None
    for each in reversed(list(data.objects("recent"))):
        sums = each.maybe_object("sums")
        found = None if sums is None else sums.maybe(name, _ENDLESS)
        if found is None or found <= 0:
            break
        if limit is not None and found > limit:
            first = each
    if first is None:
        return ""
    at = utc(first, "last")
    return f" since window {first.count('window'):,}" + (f" ({at})" if at else "")


def _outcomes(data: Fields) -> Iterator[tuple[str, ...]]:
    outcomes = data.maybe_object("outcomes")
    for name in ("error", "rework"):
        told = None if outcomes is None else outcomes.maybe_object(name)
        if told is None:
            continue
        bound, reference = told.maybe("bound", most=1), told.maybe("reference", most=1)
        seen, bad = told.count("seen"), told.count("bad")
        yield (
            told.text("what"),
            "not told" if reference is None else f"{reference:.2%}",
            f"{bad / seen:.2%} ({bad:,} of {seen:,})" if seen else "none told",
            "none" if bound is None else f"{bound:.2%}",
            told.text("how", ""),
        )


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
