"""What several files of tests here watch by."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunekit.monitoring.baseline.stored import Baseline
from tests.support.request_logs import make_baseline


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Baseline]:
    """A baseline of 100 windows, and its file."""
    return make_baseline(tmp_path_factory.mktemp("baseline"), 5000)
