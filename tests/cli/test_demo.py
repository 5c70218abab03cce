"""The demo's table is written whatever the system tells of a process."""

from __future__ import annotations

from typing import Any

import pytest

from prunekit.cli.demo import markdown


def report(peak: int | None) -> dict[str, Any]:
    def side(scale: float) -> dict[str, Any]:
        sizes = {name: int(1e8 * scale) for name in ("parameters", "file_bytes", "kv_bytes_per_token")}
        return {**sizes, "peak_bytes": peak}

    spread = {"median": 0.8, "p20": 0.7, "p80": 0.9}
    timed = {"dense": spread, "pruned": spread, "ratio": spread, "ideal_ratio": 0.75}
    quality = {
        "text": "builtin",
        "tokens_predicted": 1000,
        "length": 512,
        "baseline_perplexity": 20.0,
        "perplexity": 30.0,
        "agreement": 0.5,
        "kl": 1.0,
    }
    return {
        "share_of_blocks": 0.8,
        "share_of_parameters": 0.85,
        "widths": [1024],
        "quality": {"results": [quality]},
        "speed": {
            "results": [{"ttft": timed, "tpot": timed}],
            "dense": side(1),
            "pruned": side(0.8),
            "machine": {"cpu": "a CPU", "threads": 2, "torch": "2.13", "transformers": "5.23"},
            "config": {"prompt": 128},
            "dtype": "float32",
        },
        "seconds": {"plan": 1.0},
    }


@pytest.mark.parametrize(("peak", "row"), [(2**30, "1,024.0 | 1,024.0 | 1.000"), (None, "not known")])
def test_table_with_and_without_peak_memory(peak: int | None, row: str) -> None:
    made = markdown(report(peak))
    (line,) = [line for line in made.splitlines() if line.startswith("| peak memory")]
    assert row in line
    table = [line for line in made.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in table} == {5}
