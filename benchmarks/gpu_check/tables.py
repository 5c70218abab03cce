"""A run's files as Markdown tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_check.goals import Goal, Record, over_compiled, over_cublas, wrong


def render(parts: dict[str, Record], goals: Sequence[Goal]) -> str:
    """Everything there is."""
    first = next(iter(parts.values()))
    lines = [f"# GPU check: {first['device']['name']}, {first['date']}", ""]
    if first["rehearsal"]:
        lines += [first["rehearsal"], ""]
    lines += [", ".join(f"{name} {value}" for name, value in first["versions"].items() if value), ""]
    if "correctness" in parts:
        lines += ["## Correctness", "", *_correctness(parts["correctness"]), ""]
    if "ops" in parts:
        lines += ["## Ops", "", *_ceilings(parts["ops"]), "", *_ops(parts["ops"]), ""]
    if parts.get("models", {}).get("records"):
        lines += ["## Models", "", *_ceilings(parts["models"]), "", *_models(parts["models"]), ""]
    lines += ["## Goals", "", *_goals(goals), ""]
    lines += [f"{note}\n" for note in dict.fromkeys(part.get("note") for part in parts.values()) if note]
    for name, part in parts.items():
        if part["status"] == "cut off":
            lines += [f"The part {name} was cut off.", ""]
        if part["skipped"]:
            lines += [f"No time was left for {len(part['skipped'])} measurements of {name}.", ""]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of a Markdown table; None is shown as a dash."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join("–" if cell is None else str(cell).replace("|", "/") for cell in row) + " |"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:,.{digits}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"


def _ceilings(part: Record) -> list[str]:
    ceilings = part.get("ceilings")
    if not ceilings:
        return ["No ceilings were measured."]
    return [
        f"Ceilings of this run: copy {ceilings['copy_gbps']:,.0f} GB/s, read {ceilings['read_gbps']:,.0f} GB/s, "
        f"matmul {ceilings['matmul_tflops']:,.1f} TFLOP/s ({ceilings['dtype']}). Times are medians."
    ]


def _correctness(part: Record) -> Iterator[str]:
    records = part["records"]
    ops = dict.fromkeys((record["op"], record["dtype"]) for record in records)

    def row(op: str, dtype: str) -> list[Any]:
        own = [record for record in records if (record["op"], record["dtype"]) == (op, dtype)]
        errors = [record["relative_error"] for record in own if record.get("relative_error") is not None]
        failed = sum(not record.get("ok") for record in own)
        return [op, dtype, len(own), f"{max(errors):.1e}" if errors else None, failed or "none"]

    yield from table(("op", "dtype", "cases", "largest relative error", "failed"), (row(*key) for key in ops))
    for record in records:
        if not record.get("ok"):
            yield f"- FAILED {record['id']}: {record.get('error') or record['why']}"


def _ops(part: Record) -> Iterator[str]:
    names = ("irregular_cublas", "padded_cublas", "torch_compile", "ours")
    head = (
        "op",
        "model",
        "pruned",
        "rows",
        "irregular cuBLAS, us",
        "padded cuBLAS, us",
        "torch.compile, us",
        "ours, us",
    )
    measured = [record for record in part["records"] if "error" not in record]

    def row(record: Record) -> list[Any]:
        arms = record["arms"]
        times = [
            "failed" if "error" in arms.get(name, {}) else _number(arms.get(name, {}).get("median_us"), 2)
            for name in names
        ]
        ours = arms.get("ours", {})
        rate = (
            f"{ours['gbps']:,.0f} GB/s"
            if "gbps" in ours
            else f"{ours['tflops']:,.1f} TFLOP/s"
            if "tflops" in ours
            else None
        )
        ratio = record["irregular_over_aligned"]
        return [
            record["case"],
            record["model"],
            f"{record['pruned_percent']} %",
            record["rows"],
            *times,
            rate,
            _share(ours.get("share_of_copy", ours.get("share_of_matmul"))),
            _number(over_cublas(record), 2),
            _number(ratio["median"], 3) if ratio else None,
        ]

    yield from table((*head, "rate", "of ceiling", "x cuBLAS", "irregular/aligned"), map(row, measured))
    yield from _failures(part)


def _models(part: Record) -> Iterator[str]:
    names = ("eager", "compiled", "ours", "ours_waiting")
    head = ["model", "pruned", "batch", "prompt"]
    head += [f"TTFT {name}, ms" for name in names] + [f"TPOT {name}, ms" for name in names]
    head += ["tokens/s ours", "of roofline", "x compiled", *(f"peak {name}, MiB" for name in names)]
    measured = [record for record in part["records"] if "error" not in record]

    def row(record: Record) -> list[Any]:
        arms = record["arms"]

        def times(name: str) -> list[str | None]:
            found = (arms.get(arm, {}) for arm in names)
            return ["failed" if "error" in arm else _milliseconds(arm.get(name)) for arm in found]

        ours = arms.get("ours", {})
        peaks = [arms.get(name, {}).get("peak_bytes") for name in names]
        return [
            record["model"],
            f"{record['pruned_percent']} %",
            record["batch"],
            record["prompt"],
            *times("ttft"),
            *times("tpot"),
            _number(ours.get("tokens_per_s"), 1),
            _share(ours.get("share_of_copy")),
            _number(over_compiled(record), 2),
            *(_number(peak / 2**20 if peak else None, 0) for peak in peaks),
        ]

    yield from table(head, map(row, measured))
    yield from _failures(part)


def _milliseconds(summary: Record | None) -> str | None:
    return None if summary is None else f"{summary['median_us'] / 1e3:,.3f}"


def _failures(part: Record) -> Iterator[str]:
    """What failed as a whole, and single arms."""
    for record in part["records"]:
        if "error" in record:
            yield f"- FAILED {record['id']}: {record['error']}"
        elif wrong(record):
            told = f"relative difference from PyTorch {record.get('relative_difference')}"
            if record.get("overlap_same_tokens") is False:
                told = "other tokens than with launches that wait for each other"
            yield f"- WRONG {record['id']}: {told}"
        for name, arm in record.get("arms", {}).items():
            if "error" in arm:
                yield f"- FAILED {record['id']}, {name}: {arm['error']}"


def _goals(goals: Sequence[Goal]) -> Iterator[str]:
    words = {True: "yes", False: "NO", None: "not measured"}
    if any(goal.rehearsal for goal in goals):
        words[None] = "rehearsal"
    rows = (
        (
            goal.goal,
            f"{'<=' if goal.at_most else '>='} {goal.target}",
            _number(goal.value, 3),
            words[goal.met],
            goal.where,
        )
        for goal in goals
    )
    yield from table(("goal", "target", "measured", "met", "where"), rows)
