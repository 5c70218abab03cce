"""Threads that wait leave their core to other programs, unless the user decided otherwise."""

from __future__ import annotations

import os

import pytest

from prunekit.utils.process.waiting import wait_briefly


@pytest.mark.parametrize(
    ("given", "turns"),
    [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_what_the_environment_says_counts(
    given: dict[str, str], turns: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # So that it is as before in the end, whoever sets it.
        monkeypatch.setenv(name, given.get(name, ""))
        if name not in given:
            del os.environ[name]
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == turns
