"""What makes an answer right: the kinds of checks, their options, and those that need no process of their own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from prunekit.errors import PrunekitError
from prunekit.evaluation.acceptance.checks.numbers import POINTS, near, numbers_in
from prunekit.utils.names import nearest

EXACT, CONTAINS, NUMERIC, REGEX, SCHEMA = "exact", "contains", "numeric", "regex", "json-schema"
_LONGEST_PATTERN = 10_000
_BOOL = "true or false"

# Of each kind its options, with what they are unless said.
OPTIONS: dict[str, dict[str, Any]] = {
    EXACT: {"case": True},
    CONTAINS: {"case": True, "words": False, "all": False},
    NUMERIC: {"tolerance": 0, "relative": 0, "which": "last", "point": ".", "percent": False},
    REGEX: {"pattern": None, "case": True, "full": False},
    SCHEMA: {"schema": None, "fence": "whole"},
}
KINDS = tuple(OPTIONS)
ALL_OPTIONS = tuple(dict.fromkeys(name for each in OPTIONS.values() for name in each))
_NEEDED = {REGEX: "pattern", SCHEMA: "schema"}
_CHOICES = {"which": ("last", "first", "only", "any"), "point": POINTS, "fence": ("whole", "any", "none")}


@dataclass(frozen=True)
class Check:
    """A ``kind`` of check, what an answer is compared with (``references``: one of them, or all with the option
    ``all``; none for patterns and schemas), and all its ``options``."""

    kind: str
    references: tuple[Any, ...]
    options: Mapping[str, Any]

    @property
    def apart(self) -> bool:
        """Whether it is judged in a process of its own, because what the user wrote may compute without end."""
        return self.kind in _NEEDED


def read_check(kind: Any, reference: Any, options: Mapping[str, Any], where: str) -> Check:
    """The check that a record names, in words of its file. Raises PrunekitError where it makes no sense."""
    if kind not in KINDS:
        raise PrunekitError(
            f"{where} has the check {str(kind)[:60]!r}{nearest(str(kind), KINDS)}; there are {', '.join(KINDS)}."
        )
    known = OPTIONS[kind]
    for name in options:
        if name not in known:
            owners = [each for each in KINDS if name in OPTIONS[each]]
            raise PrunekitError(
                f"{where} has {name!r}, which is an option of {', '.join(owners)}, not of {kind}; "
                f"{kind} takes {', '.join(known)}."
            )
    made = {**known, **options}
    for name, value in made.items():
        _check_option(kind, name, value, where)
    return Check(kind, _references(kind, reference, where), made)


def _references(kind: str, reference: Any, where: str) -> tuple[Any, ...]:
    if kind in _NEEDED:
        if reference is not None:
            raise PrunekitError(
                f"{where} has a reference, which {kind} does not look at; say it in the {_NEEDED[kind]}, or leave it "
                "out."
            )
        return ()
    several = reference if isinstance(reference, list) else [reference]
    if reference is None or not several:
        raise PrunekitError(f"{where} has no reference, and {kind} compares with one; add it.")
    return tuple(_reference(kind, each, where) for each in several)


def _reference(kind: str, value: Any, where: str) -> Any:
    if kind == NUMERIC:
        found = _as_decimal(value)
        if found is None:
            raise PrunekitError(f"{where} has the reference {str(value)[:60]!r}, which is no number; write 12.5.")
        return found
    if not isinstance(value, str) or not value.strip():
        raise PrunekitError(f"{where} has the reference {str(value)[:60]!r}; {kind} takes a text that is not empty.")
    return value


def _as_decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        made = Decimal(str(value).strip())
    except InvalidOperation:
        return None
    return made if made.is_finite() and abs(made.adjusted()) <= 400 else None


def _check_option(kind: str, name: str, value: Any, where: str) -> None:
    if isinstance(OPTIONS[kind][name], bool):
        wrong, takes = not isinstance(value, bool), _BOOL
    elif name in _CHOICES:
        wrong, takes = value not in _CHOICES[name], f"one of {', '.join(_CHOICES[name])}"
    elif name in ("tolerance", "relative"):
        number = None if isinstance(value, str) else _as_decimal(value)
        wrong, takes = number is None or number < 0, "a number from 0"
    elif name == "pattern":
        wrong = not isinstance(value, str) or not 0 < len(value) <= _LONGEST_PATTERN
        takes = f"a regular expression of at most {_LONGEST_PATTERN:,} characters"
    else:
        wrong, takes = not isinstance(value, dict | bool), "a JSON schema: an object"
    if wrong:
        missing = value is None and name == _NEEDED.get(kind)
        said = f"lacks the {name} of its check" if missing else f"has {name} = {str(value)[:60]!r}"
        raise PrunekitError(f"{where} {said}; {kind} takes {takes}.")


def is_right(check: Check, answer: str) -> bool:
    """Whether ``answer`` passes a check that is not judged ``apart``.

    exact: it is the reference, white space at both ends aside. contains: the reference stands in it. numeric: its last
    (first, only, any) number is the reference within max(tolerance, relative · |reference|). Texts are compared in
    Unicode's composed form.
    """
    return _JUDGES[check.kind](check, answer)


def _exact(check: Check, answer: str) -> bool:
    case = check.options["case"]
    return _plain(answer, case) in {_plain(each, case) for each in check.references}


def _contains(check: Check, answer: str) -> bool:
    case, words = check.options["case"], check.options["words"]
    text = _plain(answer, case)
    found = (_stands_in(_plain(each, case), text, words) for each in check.references)
    return all(found) if check.options["all"] else any(found)


def _stands_in(part: str, text: str, words: bool) -> bool:
    if not words:
        return part in text
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", text) is not None


def _numeric(check: Check, answer: str) -> bool:
    options = check.options
    found = numbers_in(answer, point=options["point"], percent=options["percent"])
    if options["which"] == "only" and len(found) != 1:
        return False
    seen = {"last": found[-1:], "first": found[:1]}.get(options["which"], found)
    tolerance, relative = (Decimal(str(options[name])) for name in ("tolerance", "relative"))
    return any(near(value, wanted, tolerance, relative) for value in seen for wanted in check.references)


def _plain(text: str, case: bool) -> str:
    made = unicodedata.normalize("NFC", text.replace("\r\n", "\n")).strip()
    return made if case else unicodedata.normalize("NFC", made.casefold())


_JUDGES: dict[str, Callable[[Check, str], bool]] = {EXACT: _exact, CONTAINS: _contains, NUMERIC: _numeric}
