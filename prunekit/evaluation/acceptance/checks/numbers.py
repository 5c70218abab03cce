"""Numbers in an answer's text, as exact decimals."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation, localcontext

# Signs: hyphen, the minus sign of typography, the small and the full-width one, plus.
_SIGN = r"[-\u2212\ufe63\uff0d+]"
# Between groups of three digits, beside the comma or the point: no-break, narrow no-break and thin space, apostrophes.
_GAPS = "\u00a0\u202f\u2009'\u2019"
_LONGEST = 1 << 16
_MOST_DIGITS = 60
_MOST_EXPONENT = 400


# A run of digits with what may stand between them; in a word ("GPT4", "v1.2.3") it is none. A sign behind a letter, a
# digit or a bracket is a hyphen or a minus between two numbers.
_RUN = re.compile(
    rf"(?:(?<![\w)\]])(?P<sign>{_SIGN}))?[$€£¥]?(?<!\w)(?<!\d[.,])"
    rf"(?P<run>(?:(?<![.,])[.,])?\d+(?:[.,{_GAPS}]\d+)*)(?P<power>[eE][-+]?\d{{1,3}}(?!\w))?(?P<share>\s?[%\u2030])?"
)


def _number(point: str, group: str) -> re.Pattern[str]:
    gap = f"[{re.escape(group)}{_GAPS}]"
    return re.compile(rf"(?P<whole>\d{{1,3}}(?:{gap}\d{{3}})+|\d*)(?:{re.escape(point)}(?P<fraction>\d+))?")


_NUMBERS = {".": _number(".", ","), ",": _number(",", ".")}
POINTS = tuple(_NUMBERS)


def numbers_in(text: str, *, point: str = ".", percent: bool = False) -> list[Decimal]:
    """The numbers in ``text``, in their order: "1,234.5" is 1234.5, "−3" is -3, "2e3" is 2000. ``point`` is what stands
    before the fraction; with ``percent`` "12 %" is 0.12, and else 12. Digits within words ("GPT4", "v1.2.3") are none,
    and neither is what may be read in two ways ("3,5" where the point is ".").
    """
    if len(text) > _LONGEST:
        # What counts is said at the beginning or at the end.
        text = f"{text[: _LONGEST // 2]}\n{text[-_LONGEST // 2 :]}"
    made = []
    for found in _RUN.finditer(text):
        value = _decimal(found, point)
        if value is None:
            continue
        if percent and found["share"]:
            value /= 100 if "%" in found["share"] else 1000
        made.append(value)
    return made


def _decimal(found: re.Match[str], point: str) -> Decimal | None:
    parts = _NUMBERS[point].fullmatch(found["run"])
    if parts is None:
        return None
    digits, fraction = re.sub(r"\D", "", parts["whole"]), parts["fraction"] or ""
    if len(digits) + len(fraction) > _MOST_DIGITS:
        return None
    sign = "-" if found["sign"] and found["sign"] != "+" else ""
    try:
        return Decimal(f"{sign}{digits or '0'}{f'.{fraction}' if fraction else ''}{found['power'] or ''}")
    except InvalidOperation:
        return None


def near(value: Decimal, wanted: Decimal, tolerance: Decimal, relative: Decimal) -> bool:
    """Whether |value - wanted| ≤ max(tolerance, relative · |wanted|), exactly."""
    if any(abs(each.adjusted()) > _MOST_EXPONENT for each in (value, wanted) if each):
        return value == wanted
    with localcontext() as context:
        context.prec = 2 * _MOST_EXPONENT + 2 * _MOST_DIGITS
        return abs(value - wanted) <= max(tolerance, relative * abs(wanted))
