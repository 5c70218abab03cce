"""Estimates beside what was, from a log that is written here."""

from __future__ import annotations

import pytest

from benchmarks.cli.estimates import of_phases, of_run, read, seconds, table

LOG = """2026-11-30 02:00:00 prunekit prune model
2026-11-30 02:00:01 [1/2] own text 0/9 begins
2026-11-30 02:09:00 stopped after 9 min 00 s
2026-11-30 03:00:00 prunekit prune model --blocks 0.8
2026-11-30 03:00:00 This takes about 9 minutes, 3.1 GB of memory and 0.6 GB of disk.
2026-11-30 03:00:05 [1/3] own text 0/32 begins, about 90 s left of this phase, 8 min in all, 1.4 GB, kept in cache
2026-11-30 03:01:40 [1/3] own text: 32 in 1 min 40 s
2026-11-30 03:01:40 [2/3] curves 0/30 begins, about 5 min left of this phase, 6 min in all, 2 GB
2026-11-30 03:04:10 [2/3] curves 15/30 (layer 15), about 2.5 min left of this phase, 3.5 min in all, 2 GB
2026-11-30 03:06:40 [2/3] curves: 30 in 5 min 00 s, 12 of them kept from an earlier run
2026-11-30 03:08:20 [3/3] writing: 1 min 40 s
2026-11-30 03:08:20 finished after 8 min 20 s
""".splitlines()


def test_the_last_run_is_read() -> None:
    command, said, took = read(LOG)
    assert command == "prunekit prune model --blocks 0.8" and took == 500
    assert [(each.phase, each.ended) for each in said] == [
        ("own text", False),
        ("own text", True),
        ("curves", False),
        ("curves", False),
        ("curves", True),
        ("writing", True),
    ]
    assert (said[3].left, said[3].in_all) == (150, 210)


def test_what_was_said_beside_what_was() -> None:
    _, said, took = read(LOG)
    run = of_run(said, took)
    # At 50 s: 480 said at the 5th, 450 are left. At 250 s: 210 said then, 250 left.
    assert [(each["share"], each["left"], each["said"]) for each in run] == [
        (0.1, 450, 435),
        (0.25, 375, 335),
        (0.5, 250, 210),
        (0.75, 125, 85),
    ]
    assert run[2]["error"] == pytest.approx(-0.16)
    phases = of_phases(said)
    assert list(phases) == ["own text", "curves", "writing"]
    assert [each["said"] for each in phases["curves"]] == [270, 225, 150, 75]
    assert all(each["error"] is None for each in phases["writing"])
    assert "250" in table({"commands": [{"command": "prunekit prune", "run": run, "phases": phases}]})


def test_times() -> None:
    assert [seconds(each) for each in ("40 s", "2.5 min", "3 h 20 min", "6 days")] == [40, 150, 12_000, 518_400]


def test_a_run_that_did_not_finish() -> None:
    with pytest.raises(ValueError, match="no run that has finished"):
        read(LOG[:3])
