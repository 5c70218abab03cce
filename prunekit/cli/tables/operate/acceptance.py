"""The result of an acceptance test, for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.table import Table

from prunekit.cli.common import console, table
from prunekit.evaluation.acceptance.policy import Policy
from prunekit.utils.names import printable

if TYPE_CHECKING:
    from prunekit.evaluation.acceptance.compared import Compared, Figure
    from prunekit.evaluation.acceptance.result import Acceptance, Worst

_SHOWN = 10
_LONGEST = 300


def show_acceptance(found: Acceptance) -> None:
    """The figures, the worst records, the policy, and the verdict last."""
    out = console()
    out.print(_rates(found))
    out.print(_changes(found))
    if found.worst:
        out.print(_worst(found))
        if any(each.texts for each in found.worst):
            out.print(_texts(found.worst[:_SHOWN]))
    out.print(f"Policy{'' if found.given else ' (default: give your own with --policy)'}: {_policy(found.policy)}")
    word = found.verdict.word
    out.print(f"{word[:1].upper()}{word[1:]}.", *found.verdict.reasons)
    if found.path is not None:
        out.print(f"Written to {found.path}.")


def _rows(found: Acceptance) -> list[tuple[str, Compared]]:
    return [("all records", found.everything), *((printable(name), each) for name, each in found.groups.items())]


def _rates(found: Acceptance) -> Table:
    names = [printable(str(each["model"])) for each in (found.baseline, found.smaller)]
    made = table(
        "Wrong answers, with exact intervals of 95 %",
        "records",
        "number",
        f"{names[0]} (baseline)",
        names[1],
        "rise in points",
        "failed",
        caption=f"Rise: with Tango's score interval of {1 - 2 * found.policy.alpha:.0%}. Failed: of the baseline + of "
        "the smaller model.",
    )
    for name, each in _rows(found):
        gap = each.difference
        made.add_row(
            name,
            f"{each.records:,}",
            _percent(each.baseline_error_rate),
            _percent(each.error_rate),
            "–"
            if gap.value is None
            else f"{100 * gap.value:+.1f} ({100 * (gap.low or 0):+.1f} to {100 * (gap.high or 0):+.1f})",
            f"{each.baseline_failed} + {each.failed}",
        )
    return made


def _changes(found: Acceptance) -> Table:
    unit = found.everything.unit
    made = table(
        "What changed",
        "records",
        "right → wrong",
        "wrong → right",
        "McNemar's p",
        f"length ({unit}), ratio",
        "cut off",
        "baseline cut off",
    )
    for name, each in _rows(found):
        made.add_row(
            name,
            f"{each.worse:,}",
            f"{each.better:,}",
            f"{each.mcnemar_p:.2g}",
            _ratio(each.length_ratio),
            _percent(each.truncated),
            _percent(each.baseline_truncated),
        )
    return made


def _worst(found: Acceptance) -> Table:
    unit = found.everything.unit
    title = f"Right to wrong, the heaviest first ({min(_SHOWN, len(found.worst))} of {found.everything.worse:,})"
    made = table(title, "id", "group", "weight", f"{unit}, baseline", f"{unit}, smaller", "why")
    for each in found.worst[:_SHOWN]:
        made.add_row(
            printable(each.id),
            printable(each.group or "–"),
            f"{each.weight:g}",
            f"{each.baseline_length:,}",
            f"{each.length:,}",
            printable(each.why),
        )
    return made


def _texts(worst: tuple[Worst, ...]) -> Table:
    made = Table(title="Their texts", title_justify="left", show_lines=True)
    for column in ("id", "asked", "expected", "baseline", "smaller"):
        made.add_column(column, justify="left", ratio=None if column == "id" else 1, overflow="fold")
    for each in worst:
        if each.texts is not None:
            cells = (each.texts[name] for name in ("asked", "references", "baseline", "answer"))
            made.add_row(printable(each.id), *map(_line, cells))
    return made


def _line(value: object) -> str:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        value = " | ".join(value)
    text = value if isinstance(value, str) else "–" if value is None else json.dumps(value, ensure_ascii=False)
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _policy(policy: Policy) -> str:
    said = [f"{name} = {value:g}" for name, value in policy.to_dict().items() if isinstance(value, float | int)]
    said.append(f"too_few = {policy.too_few}")
    for name, limits in policy.to_dict()["groups"].items():
        said.append(f"{printable(name)}: " + ", ".join(f"{key} = {value:g}" for key, value in limits.items()))
    said += [f"{name}: {policy.to_dict()[name]['file']}" for name in ("eval", "serve") if policy.to_dict()[name]]
    return "; ".join(said) + "."


def _percent(figure: Figure) -> str:
    if figure.value is None:
        return "–"
    return f"{figure.value:.1%} ({100 * (figure.low or 0):.1f} to {100 * (figure.high or 0):.1f})"


def _ratio(figure: Figure) -> str:
    if figure.value is None or figure.low is None or figure.high is None:
        return "–"
    return f"{figure.value:.2f} ({figure.low:.2f} to {figure.high:.2f})"
