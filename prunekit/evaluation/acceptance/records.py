"""The company's own test records: one a line of JSON, each with a prompt and a check."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.checks.kinds import ALL_OPTIONS, Check, read_check
from prunekit.utils.files.strict_json import parse
from prunekit.utils.files.text_stream import read_lines
from prunekit.utils.names import nearest, printable

MOST_RECORDS = 1_000_000
MOST_TOKENS = 100_000
_FIELDS = ("id", "prompt", "messages", "reference", "check", "group", "weight", "max_tokens", "note")
_KNOWN = (*_FIELDS, *ALL_OPTIONS)
_MOST_WEIGHT = 1e9


@dataclass(frozen=True)
class Record:
    """One test: a ``prompt`` as text, or as chat ``messages`` of a role and a content, and the ``check`` of its answer.

    ``where`` says where it stands in its file. ``max_tokens`` is None where the run's own limit holds.
    """

    id: str
    prompt: str | None
    messages: tuple[Mapping[str, str], ...]
    check: Check
    group: str | None
    weight: float
    max_tokens: int | None
    where: str

    @property
    def asked(self) -> dict[str, Any]:
        """What the model is asked, as JSON values."""
        return {"prompt": self.prompt, "messages": [dict(each) for each in self.messages]}


@dataclass(frozen=True)
class Records:
    """All records of a file, in its order, and the hex SHA-256 of what they say."""

    all: tuple[Record, ...]
    sha256: str

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that records name, in the order of their first ones."""
        return tuple(dict.fromkeys(each.group for each in self.all if each.group is not None))

    @property
    def weighted(self) -> bool:
        """Whether some records weigh more than others."""
        return len({each.weight for each in self.all}) > 1


def read_records(path: Path) -> Records:
    """The records of a JSONL file (.gz too), all checked.

    Raises PrunekitError, with the number of the line, at the first that is broken: a wrong test is the user's to mend,
    and a test that is left out is one that nobody misses.
    """
    found: list[Record] = []
    lines: dict[str, str] = {}
    digest = hashlib.sha256()
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path}"
        record = _record(_parsed(line, where), number, where)
        if record.id in lines:
            raise PrunekitError(
                f"{where} has the id {printable(record.id)!r}, which {lines[record.id].lower()} has too; give each "
                "record its own."
            )
        if len(found) == MOST_RECORDS:
            raise PrunekitError(f"{path} has more than {MOST_RECORDS:,} records; give fewer.")
        lines[record.id] = f"Line {number}"
        digest.update(line.strip().encode("utf-8", "replace") + b"\n")
        found.append(record)
    return Records(tuple(found), digest.hexdigest())


def _parsed(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = parse(line)
    except ValueError as error:
        raise PrunekitError(f"{where} is not valid JSON ({error}); mend or remove it.") from None
    if not isinstance(row, dict):
        raise PrunekitError(
            f'{where} is no JSON object; write {{"prompt": "...", "reference": "...", "check": "exact"}}.'
        )
    return row


def _record(row: Mapping[str, Any], number: int, where: str) -> Record:
    for name in row:
        if name not in _KNOWN:
            raise PrunekitError(
                f"{where} has {printable(name)[:60]!r}, which no record has{nearest(name, _KNOWN)}; there are "
                f"{', '.join(_KNOWN)}. What is for people goes into note."
            )
    said = {name: value for name, value in row.items() if value is not None}
    if ("prompt" in said) == ("messages" in said):
        raise PrunekitError(f"{where} must have either a prompt or messages; give one of them.")
    if "check" not in said:
        raise PrunekitError(f"{where} lacks a check; say how its answer is judged, such as exact or numeric.")
    options = {name: said[name] for name in ALL_OPTIONS if name in said}
    return Record(
        id=_name(said.get("id", number), "id", where),
        prompt=_prompt(said["prompt"], where) if "prompt" in said else None,
        messages=_messages(said["messages"], where) if "messages" in said else (),
        check=read_check(said["check"], said.get("reference"), options, where),
        group=_name(said["group"], "group", where) if "group" in said else None,
        weight=_weight(said.get("weight", 1), where),
        max_tokens=_tokens(said["max_tokens"], where) if "max_tokens" in said else None,
        where=where,
    )


def _name(value: Any, field: str, where: str) -> str:
    number = isinstance(value, int) and not isinstance(value, bool)
    if not number and not (isinstance(value, str) and 0 < len(value.strip()) <= 200):
        raise PrunekitError(f"{where} has the {field} {json.dumps(value)[:60]}; it is a text of 1 to 200 characters.")
    return _encodable(str(value).strip())


def _prompt(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PrunekitError(f"{where} has a prompt that is no text, or an empty one; write what the model is asked.")
    return _encodable(value)


def _messages(value: Any, where: str) -> tuple[Mapping[str, str], ...]:
    rows: Sequence[Any] = value if isinstance(value, list) else []
    for each in rows:
        texts = isinstance(each, dict) and all(isinstance(each.get(name), str) for name in ("role", "content"))
        if not texts or len(each) != 2:
            rows = []
            break
    if not rows:
        raise PrunekitError(
            f'{where} has messages of another form; write a list of {{"role": "user", "content": "..."}}.'
        )
    if rows[-1]["role"] == "assistant":
        raise PrunekitError(f"{where} ends with a message of the assistant; end with what it has to answer.")
    return tuple({name: _encodable(each[name]) for name in ("role", "content")} for each in rows)


def _weight(value: Any, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (math.isfinite(value) and 1 / _MOST_WEIGHT <= value <= _MOST_WEIGHT):
        raise PrunekitError(
            f"{where} has the weight {json.dumps(value)[:60]}; it is a number above 0, such as 2 to count twice."
        )
    return float(value)


def _tokens(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_TOKENS:
        raise PrunekitError(
            f"{where} has max_tokens = {json.dumps(value)[:60]}; it is a whole number from 1 to {MOST_TOKENS:,}."
        )
    return value


def _encodable(text: str) -> str:
    # A lone surrogate, which JSON can spell, is no character and can't be encoded.
    return text.encode("utf-8", "replace").decode()
