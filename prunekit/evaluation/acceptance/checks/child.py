"""Judges answers by patterns and schemas of the user's, for a parent that has set limits: both may compute without end.

stdin: {"seconds", "items": [{"kind", "options", "answer"}]} as JSON; an item without an answer only has its pattern or
schema looked at. stdout: for each item a line of JSON: {"right"}, {"slow"}, {"failed"} (at this answer), or
{"error"} (at any answer).
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from prunekit.utils.files.strict_json import parse

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
MISSING = "jsonschema"
# Of one pattern or schema. It is not run again then: it would take as long each time.
_MOST_SLOW = 3


class _Slow(Exception):
    """An item took longer than it may."""


def main() -> None:
    asked = json.load(sys.stdin)
    slow: Counter[str] = Counter()
    for item in asked["items"]:
        check = json.dumps([item["kind"], item["options"]], sort_keys=True)
        try:
            if slow[check] >= _MOST_SLOW:
                raise _Slow
            with _limited(asked["seconds"]):
                said = _said(item)
        except _Slow:
            slow[check] += 1
            said = {"slow": True}
        except (RecursionError, MemoryError) as error:
            said = {"slow": True} if "answer" in item else {"error": f"it ends in a {type(error).__name__}"}
        sys.stdout.write(json.dumps(said) + "\n")
        # The parent learns from the number of lines which item ended the child.
        sys.stdout.flush()


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Interrupt what computes for longer, where the system can: the matcher of ``re`` looks for signals."""

    def stop(*_: Any) -> None:
        raise _Slow

    if not hasattr(signal, "setitimer"):
        yield
        return
    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _said(item: dict[str, Any]) -> dict[str, Any]:
    options = json.dumps(item["options"], sort_keys=True)
    make = _matcher if item["kind"] == "regex" else _validator
    try:
        judge = make(options)
    except (re.error, ImportError, ValueError, OverflowError, TypeError) as error:
        return {"error": MISSING if isinstance(error, ImportError) else str(error).splitlines()[0][:200]}
    if "answer" not in item:
        return {"right": True}
    try:
        return {"right": judge(item["answer"])}
    except (_Slow, RecursionError, MemoryError):
        raise
    except Exception as error:
        # Whatever the package for schemas does with this answer: other records have a result all the same.
        return {"failed": type(error).__name__}


@lru_cache(maxsize=64)
def _matcher(said: str) -> Callable[[str], bool]:
    options = json.loads(said)
    pattern = re.compile(options["pattern"], 0 if options["case"] else re.IGNORECASE)
    find = pattern.fullmatch if options["full"] else pattern.search
    return lambda answer: find(answer.strip()) is not None


@lru_cache(maxsize=64)
def _validator(said: str) -> Callable[[str], bool]:
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    options = json.loads(said)
    schema = options["schema"]
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path)) or "the schema"
        raise ValueError(f"{place}: {error.message}") from None
    _check_parts(schema, kind.META_SCHEMA)
    # An empty registry: nothing that a schema points to is fetched.
    validator = kind(schema, registry=Registry())

    def judge(answer: str) -> bool:
        text = unfenced(answer, options["fence"])
        if text is None:
            return False
        try:
            value = parse(text)
        except ValueError:
            return False
        return validator.is_valid(value)

    # A schema that points to itself without end shows before the answers.
    judge("{}")
    judge("[]")
    return judge


def _check_parts(schema: Any, dialect: Any) -> None:
    """Raises ValueError where a part of the schema, however deep, points to what is not there, or has a broken pattern.
    The validator itself looks at a part when a value reaches it: some answer, after all models were asked."""
    from jsonschema_specifications import REGISTRY
    from referencing import Specification
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    how = specification_with(dialect.get("$id") or dialect.get("id") or "", default=Specification.OPAQUE)
    root = how.create_resource(schema)
    left = [(root, REGISTRY.resolver_with_root(root))]
    seen: set[int] = set()
    while left:
        part, place = left.pop()
        if id(part.contents) in seen or not isinstance(part.contents, dict):
            continue
        seen.add(id(part.contents))
        for pattern in (part.contents.get("pattern"), *(part.contents.get("patternProperties") or ())):
            if isinstance(pattern, str):
                re.compile(pattern)
        for name in ("$ref", "$dynamicRef"):
            if isinstance(target := part.contents.get(name), str):
                try:
                    found = place.lookup(target)
                except Unresolvable:
                    raise ValueError(f"it points to {target}, which is not in it") from None
                left.append((how.create_resource(found.contents), found.resolver))
        left += [(each, place.in_subresource(each)) for each in part.subresources()]


def unfenced(answer: str, fence: str) -> str | None:
    """The JSON text of an answer: "none" takes all of it, "whole" takes off a code fence around all of it, "any" the
    first fence wherever it stands, or all where there is none. Text around is left, and is no JSON."""
    text = answer.strip()
    if fence == "none":
        return text
    found = _FENCE.fullmatch(text) if fence == "whole" else _FENCE.search(text)
    return text if found is None else found[1]


if __name__ == "__main__":
    main()
