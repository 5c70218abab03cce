"""A run's files as Markdown tables, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_check.blocks import BLOCKS
from benchmarks.gpu_check.goals import Goal, Record, faster, over_dense, wrong


def render(blocks: dict[str, Record], goals: Sequence[Goal]) -> str:
    """Everything there is."""
    first = next(iter(blocks.values()))
    lines = [f"# GPU check: {first['device']['name']}, {first['date']}", ""]
    if first["rehearsal"]:
        lines += [first["rehearsal"], ""]
    lines += [", ".join(f"{name} {value}" for name, value in first["versions"].items() if value), ""]
    for name, block in blocks.items():
        lines += [f"## {name.capitalize()}: {BLOCKS[name].summary}", ""]
        lines += [*_ceilings(block), *SECTIONS[name](block), *_failures(block), ""]
        if block["status"] == "cut off":
            lines += ["This block was cut off.", ""]
        if block["not_reached"]:
            lines += [f"Not reached in {block['spent_s']:.0f} s: {'; '.join(block['not_reached'])}.", ""]
    lines += ["## Goals", "", *_goals(goals), ""]
    lines += [f"{note}\n" for note in dict.fromkeys(block.get("note") for block in blocks.values()) if note]
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


def _measured(block: Record) -> list[Record]:
    return [record for record in block["records"] if "error" not in record]


def _ceilings(block: Record) -> list[str]:
    ceilings = block.get("ceilings")
    if not ceilings:
        return []
    return [
        f"Ceilings of this run: copy {ceilings['copy_gbps']:,.0f} GB/s, read {ceilings['read_gbps']:,.0f} GB/s, "
        f"matmul {ceilings['matmul_tflops']:,.1f} TFLOP/s ({ceilings['dtype']}). Times are medians.",
        "",
    ]


def _headline(block: Record) -> Iterator[str]:
    names = ("eager", "compiled", "ours_waiting", "ours")
    head = ["model", "batch", "prompt"]
    head += [f"TTFT {name}, ms" for name in names] + [f"TPOT {name}, ms" for name in names]
    head += ["tokens/s ours", "of roofline", "x dense", "ideal", "x eager", "x compiled", "peak ours, MiB"]
    measured = _measured(block)

    def row(record: Record) -> list[Any]:
        arms = record["arms"]

        def times(name: str) -> list[str | None]:
            found = (arms.get(arm, {}) for arm in names)
            return ["failed" if "error" in arm else _milliseconds(arm.get(name)) for arm in found]

        ours = arms.get("ours", {})
        gain, ideal = over_dense(record, measured) or (None, None)
        peak = ours.get("peak_bytes")
        return [
            f"{record['model']}, {record['variant']}",
            record["batch"],
            record["prompt"],
            *times("ttft"),
            *times("tpot"),
            _number(ours.get("tokens_per_s"), 1),
            _share(ours.get("share_of_copy")),
            _number(gain, 2),
            _number(ideal, 2),
            _number(faster(record, "eager"), 2),
            _number(faster(record, "compiled"), 2),
            _number(peak / 2**20 if peak else None, 0),
        ]

    yield from table(head, map(row, measured))


def _milliseconds(summary: Record | None) -> str | None:
    return None if summary is None else f"{summary['median_us'] / 1e3:,.3f}"


def _launch(block: Record) -> Iterator[str]:
    def row(record: Record) -> list[Any]:
        if "us_a_launch" in record:
            times = {name: value["median_us"] for name, value in record["us_a_launch"].items()}
            return [record["id"], *(_number(times.get(name), 3) for name in ("waiting", "overlapping"))]
        if "arms" in record:
            times = {name: arm["tpot"]["median_us"] for name, arm in record["arms"].items() if "tpot" in arm}
            return [record["id"], *(_number(times.get(name), 2) for name in ("ours_waiting", "ours"))]
        us = (record.get("entry") or record.get("other_entry") or {}).get("us", {})
        return [record["id"], _number(us.get("off"), 2), _number(us.get("on"), 2)]

    yield from table(("what", "waiting, us", "overlapping, us"), map(row, _measured(block)))


def _choices(block: Record) -> Iterator[str]:
    def row(record: Record) -> list[Any]:
        entry = record.get("entry") or record.get("other_entry") or {}
        times = sorted(entry.get("us", {}).items(), key=lambda pair: pair[1])
        return [record["id"], entry.get("choice"), ", ".join(f"{name} {us:,.2f}" for name, us in times) or None]

    yield from table(("where", "chosen", "us of each"), map(row, _measured(block)))


def _plain(block: Record) -> Iterator[str]:
    """Whatever numbers and words there are."""

    def text(value: Any) -> str:
        return f"{value:,.4g}" if isinstance(value, float) else str(value)

    def row(record: Record) -> list[Any]:
        hidden = {"id", "took_s", "whole_model"}
        found = {name: value for name, value in record.items() if name not in hidden}
        nested = {
            f"{name} {inner}": each
            for name, value in found.items()
            if isinstance(value, dict)
            for inner, each in value.items()
        }
        flat = {name: value for name, value in {**found, **nested}.items() if isinstance(value, (str, int, float))}
        return [record["id"], "; ".join(f"{name} {text(value)}" for name, value in flat.items())]

    yield from table(("what", "measured"), map(row, _measured(block)))


def _server(block: Record) -> Iterator[str]:
    def rows() -> Iterator[list[Any]]:
        for record in _measured(block):
            if "not_there" in record:
                yield [record["id"], record["not_there"], *[None] * 7]
            for place, row in enumerate(record.get("rows", [])):
                times = [row.get("ttft_s"), row.get("tpot_s")]
                yield [
                    record["id"],
                    f"batch {row['batch']}" if "batch" in row else f"{row['rate']} a second",
                    *(_number(None if value is None else value * 1e3, 3) for value in times),
                    _number(row.get("tokens_per_s"), 0),
                    _number(record.get("speedup"), 2) if place == 0 else None,
                    _number(record.get("ideal_speedup"), 2) if place == 0 else None,
                    record.get("kv_tokens") if place == 0 else None,
                    _number(record.get("startup_s"), 1) if place == 0 else None,
                ]

    head = ("what", "load", "TTFT, ms", "TPOT, ms", "tokens/s", "x dense", "ideal", "tokens in the cache", "start, s")
    yield from table(head, rows())


def _correctness(block: Record) -> Iterator[str]:
    records = block["records"]
    ops = dict.fromkeys((record["op"], record["dtype"]) for record in records)

    def row(op: str, dtype: str) -> list[Any]:
        own = [record for record in records if (record["op"], record["dtype"]) == (op, dtype)]
        errors = [record["relative_error"] for record in own if record.get("relative_error") is not None]
        failed = sum(not record.get("ok") for record in own)
        return [op, dtype, len(own), f"{max(errors):.1e}" if errors else None, failed or "none"]

    yield from table(("op", "dtype", "cases", "largest relative error", "failed"), (row(*key) for key in ops))


SECTIONS = {
    "headline": _headline,
    "launch": _launch,
    "tiles": _choices,
    "attention": _choices,
    "exports": _plain,
    "server": _server,
    "scale": _plain,
    "correctness": _correctness,
}


def _failures(block: Record) -> Iterator[str]:
    """What failed as a whole, and single arms."""
    for record in block["records"]:
        if "error" in record:
            yield f"- FAILED {record['id']}: {record['error']}"
        elif record.get("ok") is False:
            yield f"- FAILED {record['id']}: {record['why']}"
        elif wrong(record):
            told = f"relative difference from PyTorch {record.get('relative_difference')}"
            if record.get("overlap_same_tokens") is False:
                told = "other tokens than with launches that wait for each other"
            yield f"- WRONG {record['id']}: {told}"
        for name, arm in record.get("arms", {}).items():
            if "error" in arm:
                yield f"- FAILED {record['id']}, {name}: {arm['error']}"
        for name in ("entry", "other_entry"):
            for choice, why in ((record.get(name) or {}).get("failed") or {}).items():
                yield f"- FAILED {record['id']}, {choice}: {why}"


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
