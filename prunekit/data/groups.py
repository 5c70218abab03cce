"""Groups that rows of text say they belong to: which one each sequence comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunekit.errors import PrunekitError
from prunekit.utils.names import printable, sentence

if TYPE_CHECKING:
    import torch

MOST_GROUPS = 6
"""So many are told apart, those with most text; the others are one."""
OTHERS = "others"

# The longest name, in characters; how many fields an error lists; after so many rows without a group there is none.
_LONGEST, _MOST_FIELDS, _MOST_WITHOUT = 40, 12, 10_000


def grouped(source: str, rows: Iterator[tuple[str, Any]], field: str | None) -> Iterator[tuple[str, Any, str | None]]:
    """``rows`` of ``source``, each with what it has in ``field``; None where that is nothing, or no field is named.
    Raises PrunekitError where no row has anything there."""
    if field is None:
        yield from ((where, row, None) for where, row in rows)
        return
    found, fields = False, dict[str, None]()
    for number, (where, row) in enumerate(rows, start=1):
        group = _name(row, field)
        if not found:
            found = group is not None
            if isinstance(row, dict) and len(fields) < _MOST_FIELDS:
                fields.update(dict.fromkeys(map(str, row)))
            if not found and number >= _MOST_WITHOUT:
                break
        yield where, row, group
    if not found:
        raise no_group(source, field, tuple(fields))


def no_group(source: str, field: str, fields: Sequence[str] = ()) -> PrunekitError:
    """What is said where no row of ``source`` has a group in its ``field``."""
    there = sentence(f" The fields are {', '.join(fields[:_MOST_FIELDS])}.") if fields else ""
    return PrunekitError(f"No row of {source} names a group in {field!r}.{there} Name another (--set calib_group=...).")


def _name(row: Any, field: str) -> str | None:
    value = row.get(field) if isinstance(row, dict) else None
    if value is None or isinstance(value, (dict, list)):
        return None
    made = printable(" ".join(str(value).split()))
    return made if len(made) <= _LONGEST else f"{made[: _LONGEST - 1]}…"


def told_apart(tokens: Mapping[str | None, int]) -> dict[str | None, str]:
    """The name under which each group counts that has so many ``tokens``: of more than :data:`MOST_GROUPS` those with
    most keep theirs. Rows without a group are among the others."""
    named = sorted((each for each in tokens if each is not None), key=lambda each: -tokens[each])
    kept = named[: MOST_GROUPS if len(named) == len(tokens) <= MOST_GROUPS else MOST_GROUPS - 1]
    return {each: each if each is not None and each in kept else OTHERS for each in tokens}


def groups_of_blocks(runs: Sequence[tuple[str, int]], blocks: int, length: int) -> tuple[str, ...]:
    """Which group has most tokens in each of ``blocks`` of ``length`` tokens, of text that consists of ``runs``: names,
    and how many tokens of each follow each other."""
    import torch

    starts = torch.arange(blocks) * length
    names = list(dict.fromkeys(name for name, _ in runs))
    inside = torch.zeros(len(names), blocks, dtype=torch.int64)
    place = 0
    for name, count in runs:
        inside[names.index(name)] += _overlap(starts, length, place, place + count)
        place += count
    return tuple(names[index] for index in inside.argmax(0).tolist())


def _overlap(starts: torch.Tensor, length: int, first: int, end: int) -> torch.Tensor:
    return ((starts + length).clamp(max=end) - starts.clamp(min=first)).clamp(min=0)
