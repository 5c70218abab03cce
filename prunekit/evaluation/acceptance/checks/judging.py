"""Judging answers: in this process, or in a child with limits where a pattern or a schema of the user's is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.checks.child import MISSING
from prunekit.evaluation.acceptance.checks.kinds import SCHEMA, Check, is_right
from prunekit.evaluation.acceptance.records import Record
from prunekit.utils.process.child import Limits, run_python
from prunekit.utils.provenance import install_extra

SECONDS = 1.0
"""Of a processor, for one answer by one pattern or schema."""
# Until the child has imported what it needs.
_TO_BEGIN = 20
_EACH = 0.01
_WAIT = 30.0
_MEMORY = 4 << 30
_OUTPUT = 64 << 20
_AT_ONCE = 2000
_MOST_ITEM = 1 << 20

Verdict = bool | None
"""Whether an answer is right; None where its check did not come to an end."""


def judge(checks: Sequence[Check], answers: Sequence[str]) -> list[Verdict]:
    """Whether each of the ``answers`` passes its check. None where a pattern or a schema took more than a second, or
    failed at this answer.

    Raises PrunekitError where a check can't be run at all.
    """
    made: list[Verdict] = [None] * len(checks)
    apart = []
    for place, (check, answer) in enumerate(zip(checks, answers, strict=True)):
        if not check.apart:
            made[place] = is_right(check, answer)
        elif len(answer) <= _MOST_ITEM:
            apart.append(place)
    for at in range(0, len(apart), _AT_ONCE):
        some = apart[at : at + _AT_ONCE]
        items = [{**_item(checks[place]), "answer": answers[place]} for place in some]
        for place, said in zip(some, _run(items), strict=True):
            if "error" in said:
                raise PrunekitError(f"The {checks[place].kind} check can't be run: {said['error']}.")
            made[place] = said.get("right")
    return made


def look_at(records: Sequence[Record]) -> None:
    """Raises PrunekitError, with the line, where a pattern or a schema is broken, or the package for schemas is
    missing; before any model is asked."""
    apart = [each for each in records if each.check.apart]
    for at in range(0, len(apart), _AT_ONCE):
        some = apart[at : at + _AT_ONCE]
        for record, said in zip(some, _run([_item(each.check) for each in some]), strict=True):
            if said.get("error") == MISSING:
                raise PrunekitError(
                    f"{record.where} has a JSON schema, which needs the package jsonschema; run "
                    f"{install_extra('accept')}, or `pip install jsonschema`."
                )
            if not said.get("right"):
                what = "schema" if record.check.kind == SCHEMA else "pattern"
                why = said.get("error") or "it takes too long"
                raise PrunekitError(f"{record.where} has a {what} that can't be used ({why}); mend it.")


def _item(check: Check) -> dict[str, Any]:
    return {"kind": check.kind, "options": dict(check.options)}


def _run(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the child says of each item; {"slow"} of one that ended the child. Then another child goes on behind it."""
    said: list[dict[str, Any]] = []
    while len(said) < len(items):
        left = items[len(said) :]
        slow = int((SECONDS + _EACH) * len(left))
        try:
            ended = run_python(
                module="prunekit.evaluation.acceptance.checks.child",
                input=json.dumps({"seconds": SECONDS, "items": left}),
                timeout=_WAIT + 4 * (_TO_BEGIN + slow),
                limits=Limits(memory_bytes=_MEMORY, cpu_seconds=_TO_BEGIN + slow, output_bytes=_OUTPUT, file_bytes=0),
            )
        except OSError as error:
            raise PrunekitError(f"No process could be started for the checks: {error.strerror or error}.") from None
        lines = ended.out.splitlines() if ended.ok else ended.out.splitlines()[: ended.out.count("\n")]
        said += [json.loads(line) for line in lines[: len(left)]]
        if ended.ok and len(lines) < len(left):
            raise PrunekitError("The process for the checks ended early; try again.")
        if not ended.ok and len(said) < len(items):
            if not lines and ended.stopped is None and ended.code >= 0:
                raise PrunekitError(f"The process for the checks failed: {ended.reason}.")
            said.append({"slow": True})
    return said
