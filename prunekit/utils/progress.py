"""Progress of long work: which phase it is, how far it has come, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prunekit.utils.advance import Advance, untold
from prunekit.utils.phases.run import current
from prunekit.utils.phases.telling import phases
from prunekit.utils.process.ranks import is_first


@contextmanager
def progress(
    title: str,
    total: float,
    *,
    work: Mapping[str, float] | None = None,
    tokens: int | None = None,
    kept_in: Path | None = None,
    parts: bool = False,
) -> Iterator[Advance]:
    """``title`` is a phase of ``total`` steps while the block runs: one of those that
    :func:`prunekit.utils.phases.telling.phases` has named, or one more. Inside another phase it is a part of that. Of
    several ranks, the first one tells of it.

    ``work`` has what all steps of a kind cost together, where steps differ (:class:`prunekit.utils.phases.pace.Pace`);
    ``tokens`` how many all steps read or write; ``kept_in`` where what they make is kept. With ``parts`` the steps are
    phases that the block itself begins, and nobody else tells of them. Yields what is to be told of each step.
    """
    if not is_first():
        yield untold
        return
    place = None if kept_in is None else str(kept_in)
    run = current.get()
    if run is None:
        with phases(title) as run:
            assert run is not None
            with run.phase(title, total, work=work, tokens=tokens, place=place, parts=parts) as advance:
                yield advance
        return
    with run.phase(title, total, work=work, tokens=tokens, place=place, parts=parts) as advance:
        yield advance


@contextmanager
def aside(title: str) -> Iterator[None]:
    """Something that takes a while and is no phase, such as reading weights from a disk: it is shown, not counted."""
    run = current.get()
    if run is None or not is_first():
        yield
        return
    with run.phase(title, 1, counted=False) as advance:
        advance(0)
        yield
