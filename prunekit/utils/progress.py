"""A progress bar with an estimate on a terminal; nothing where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from prunekit.utils.advance import Advance, untold
from prunekit.utils.names import printable
from prunekit.utils.process.ranks import is_first
from prunekit.utils.terminal import SafeConsole

console = SafeConsole(stderr=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Shows ``title`` and a bar of ``total`` steps on stderr while the block runs. Of several ranks, the first does.

    Yields what is to be told of each step.
    """
    if not console.is_terminal or not is_first():
        yield untold
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(printable(title), total=total, note="")

        def advance(steps: float = 1, note: str = "") -> None:
            bar.update(task, advance=steps, note=printable(note))

        yield advance
