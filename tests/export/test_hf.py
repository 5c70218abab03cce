from __future__ import annotations

import json

import pytest
from export_models import FAMILIES_TESTED

from prunekit.export.base import Options
from prunekit.export.run import export


@pytest.mark.parametrize("model_type", FAMILIES_TESTED)
@pytest.mark.parametrize("layout", ["per-layer", "uniform"])
def test_checkpoint_is_the_same_model(uneven, tmp_path, model_type, layout):
    made = export(uneven(model_type), "hf", tmp_path / "out", Options(layout=layout))
    assert made.parity is not None and made.parity.ok
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["ok"] is True
