"""Times, sizes and lines of progress, as people read them."""

from __future__ import annotations

from prunekit.utils.names import printable
from prunekit.utils.phases.event import ProgressEvent


def duration(seconds: float) -> str:
    """A time that has passed: ``3.2 s``, ``5 min 12 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def about(seconds: float) -> str:
    """A time that is expected, no finer than it can be known: ``40 s``, ``2.5 min``, ``6 min``, ``3 h 20 min``."""
    if seconds < 90:
        step = 1 if seconds < 10 else 5
        return f"{step * max(1, round(seconds / step))} s"
    if seconds < 285:
        return f"{round(seconds / 30) / 2:g} min"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(10 * round(seconds / 600), 60)
    if hours < 100:
        return f"{hours} h" + (f" {minutes:02} min" if minutes else "")
    return f"{round(seconds / 86400):d} days"


def in_a_sentence(seconds: float) -> str:
    """Such as "45 seconds", "9 minutes", "2.5 hours"."""
    minutes = seconds / 60
    if minutes >= 100:
        return f"{minutes / 60:.1f} hours"
    return f"{minutes:.0f} minutes" if minutes >= 1.5 else f"{seconds:.0f} seconds"


def size(count: float) -> str:
    """Bytes, in GB or MB of a thousand each."""
    if count >= 999.5e6:
        giga = count / 1e9
        return f"{giga:.0f} GB" if giga >= 9.95 else f"{giga:.1f} GB"
    return f"{max(1, round(count / 1e6)):,} MB"


def count(value: float) -> str:
    """Steps: whole ones, for a step may be told of by halves."""
    return f"{int(value + 1e-6):,}"


def number(event: ProgressEvent) -> str:
    """``[2/6] `` before the title; nothing where a run is a single phase, or this is none."""
    if not event.phase or (event.phases == 1 and not event.more):
        return ""
    return f"[{event.phase}/{event.phases}{'+' if event.more else ''}] "


_WITHOUT_BRACKETS = str.maketrans("", "", "[]")


def at(event: ProgressEvent) -> str:
    """Where a run stands, within another's line: ``2/6 loss curves 17/60``."""
    steps = f" {count(event.done)}/{count(event.total)}" if event.total > 1 else ""
    return f"{number(event).translate(_WITHOUT_BRACKETS)}{printable(event.title)}{steps}"


def line(event: ProgressEvent, verbose: bool = False) -> str:
    """One line for people."""
    begin = number(event) + printable(event.title)
    if event.what == "unneeded":
        return f"{begin}: {printable(event.note) or 'not needed'}"
    begun = event.what == "begun"
    words = _ended(event) if event.what == "ended" else _under_way(event)
    if verbose:
        if event.tokens_per_second:
            words.append(f"{event.tokens_per_second:,.0f} tokens/s")
        if event.kept and event.what != "ended":
            words.append(f"{count(event.kept)} of them kept from an earlier run")
        if event.what == "ended" and event.memory is not None:
            words.append(size(event.memory))
        if event.place and begun:
            words.append(f"kept in {printable(event.place)}")
    if event.what == "ended":
        return f"{begin}: {', '.join(words)}"
    steps = f" {count(event.done)}/{count(event.total)}" if event.total > 1 else ""
    if begun:
        steps += " begins"
    note = f" ({printable(event.note)})" if event.note else ""
    return f"{begin}{steps}{note}" + "".join(f", {word}" for word in words)


def _ended(event: ProgressEvent) -> list[str]:
    if event.kept >= event.done > 0 and event.total > 0:
        all_of = "kept from an earlier run" if event.total <= 1 else f"all {count(event.done)} kept from an earlier run"
        return [all_of]
    took = duration(event.seconds)
    words = [took if event.total <= 1 else f"{count(event.done)} in {took}"]
    if event.kept:
        words.append(f"{count(event.kept)} of them kept from an earlier run")
    return words


def _under_way(event: ProgressEvent) -> list[str]:
    words = []
    if event.left is not None:
        words.append(f"about {about(event.left)} left")
        # The same where nothing follows.
        last = event.phase == event.phases and not event.more
        if event.left_in_all is None and event.phase and not last:
            words[-1] += " of this phase"
        elif event.left_in_all is not None and about(event.left_in_all) != about(event.left):
            words[-1] += " of this phase"
            words.append(f"{about(event.left_in_all)} in all")
    elif event.what == "step":
        words.append(f"{duration(event.seconds)} so far")
    if event.memory is not None:
        words.append(size(event.memory))
    return words
