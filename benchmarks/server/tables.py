"""What was measured, as Markdown: every arm beside the first, and beside what its bytes would bring."""

from __future__ import annotations

from statistics import median
from typing import Any


def table(report: dict[str, Any]) -> str:
    """A row for each case and arm: medians over turns. Ratios are the first arm's time over this one's; the ideal is
    the first arm's bytes of weights that a decode step reads over this one's."""
    offline = report["kind"] == "offline"
    found: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = {}
    for run in report["runs"]:
        for row in run.get("rows", []):
            case = (row["prompt"], row["batch"] if offline else row["rate"])
            found.setdefault(case, {}).setdefault(run["arm"], []).append(row)
    bytes_of = report["decode_bytes"]
    first = next(iter(bytes_of), None)
    lines = [
        f"| prompt | {'batch' if offline else 'rate'} | arm | TTFT, ms | TPOT, ms | tokens/s | TPOT ratio | ideal | "
        "of ideal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, arms in found.items():
        base = _median(arms.get(first, []), "tpot_s") if first is not None else None
        for arm, rows in arms.items():
            ttft, tpot, speed = (_median(rows, name) for name in ("ttft_s", "tpot_s", "tokens_per_s"))
            ratio = base / tpot if base and tpot else None
            ideal = bytes_of[first] / bytes_of[arm] if first is not None else None
            cells = [*map(str, case), arm, _shown(ttft, 1e3, 2), _shown(tpot, 1e3, 3), _shown(speed, 1, 0)]
            cells += [_shown(ratio, 1, 3), _shown(ideal, 1, 3), _shown(ratio and ideal and ratio / ideal, 1, 2)]
            lines.append("| " + " | ".join(cells) + " |")
    for run in report["runs"]:
        held = run.get("kv_tokens")
        facts = [f"started in {run['startup_s']:.1f} s"] if "startup_s" in run else []
        facts += [f"KV cache for {held:,} tokens"] if held else []
        facts += [f"weights of {run['weight_bytes'] / 2**20:,.0f} MiB"] if "weight_bytes" in run else []
        facts += [f"problem: {run['problem']}"] if "problem" in run else []
        lines.append(f"\n{run['arm']}, turn {run['turn']}: {', '.join(facts) or 'nothing'}.")
    return "\n".join(lines)


def _median(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return median(values) if values else None


def _shown(value: float | None, times: float, digits: int) -> str:
    return "–" if value is None else f"{value * times:,.{digits}f}"
