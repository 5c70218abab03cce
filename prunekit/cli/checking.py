"""The look at a result that ends the commands that write one, and what its verdict does to the exit code."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.cli.common import note
from prunekit.cli.tables.verdicts import show_check
from prunekit.errors import PrunekitError
from prunekit.evaluation.verdict import BROKEN
from prunekit.utils.phases.telling import phases
from prunekit.utils.phases.titles import CHECK
from prunekit.utils.process.ranks import from_first
from prunekit.utils.progress import progress

if TYPE_CHECKING:
    from prunekit.models.source import Source

NONE = "none"
TOO_MUCH = 3
"""The exit code where a model adds more loss than was allowed."""


def check_asked(text: str, most: float | None) -> None:
    """Refuse, before the work, what can't be checked afterwards."""
    limit_of(most)
    if text != NONE:
        from prunekit.evaluation.check import check_there

        check_there(text)
    elif most is not None:
        raise PrunekitError("--max-loss-added needs a check to look at; leave out --check none, or the limit.")


def then_checked(text: str) -> AbstractContextManager[Any]:
    """The phase of :func:`checked` comes after what the block does, unless the ``text`` is none."""
    return nullcontext() if text == NONE else phases(CHECK)


def limit_of(most: float | None) -> None:
    """Refuse a limit that makes no sense."""
    if most is not None and not most >= 0:
        raise PrunekitError(f"--max-loss-added is in nats a token, 0 or more, such as 0.3; got {most:g}.")


def checked(
    output: Path, baseline: Source | str, text: str, most: float | None, *, show: bool, **options: Any
) -> tuple[dict[str, Any] | None, int]:
    """Look at ``output`` beside ``baseline``, and print what was seen where it is to ``show``. Returns it for JSON, and
    the exit code. Of several ranks the first one looks."""
    if text == NONE:
        return None, 0

    def look() -> dict[str, Any]:
        from prunekit.evaluation.check import check

        # Both models read a text and write one.
        with progress(CHECK, 4, parts=True):
            found = check(str(output), baseline, text=text, **options)
        if show:
            show_check(output.resolve().name, found)
        return found.to_dict()

    seen = from_first(look)
    if seen["verdict"] == BROKEN:
        note_broken(f"The model in {output}")
    return seen, exit_code([(str(output), seen.get("loss_added"))], most)


def note_broken(name: str) -> None:
    """Say on stderr that the model of that ``name`` is broken, whatever is printed of it."""
    note(f"{name} is broken. Prune less, by another method or on text like yours, or train it.")


def exit_code(added: list[tuple[str, float | None]], most: float | None) -> int:
    """The exit code for models of these names, with what loss each adds (None where that is not known)."""
    code = 0
    for name, loss in added:
        if most is None or (loss is not None and loss <= most):
            continue
        how = "an unknown loss" if loss is None else f"{loss:.3f} nats a token"
        note(f"{name} adds {how}, and --max-loss-added allows {most:g}: exit code {TOO_MUCH}.")
        code = TOO_MUCH
    return code
