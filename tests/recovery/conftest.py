from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.recovering import make_places


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model, a pruned one, and text."""
    return make_places(tmp_path_factory.mktemp("recover"))
