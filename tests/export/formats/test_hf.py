from __future__ import annotations

import json

import pytest

from prunekit.export.export import export
from prunekit.export.target import Options
from prunekit.models.source import resolve
from tests.support.export_models import FAMILIES_TESTED


@pytest.mark.parametrize("model_type", FAMILIES_TESTED)
@pytest.mark.parametrize("layout", ["per-layer", "uniform"])
def test_checkpoint_is_the_same_model(uneven, tmp_path, model_type, layout):
    made = export(uneven(model_type), "hf", tmp_path / "out", Options(layout=layout))
    assert made.parity is not None and made.parity.ok
    assert made.parity.greedy.equal == made.parity.greedy.compared == 72
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["ok"] is True


def test_padding_keeps_what_is_computed(uneven, tmp_path):
    source = uneven("qwen2")
    made = export(source, "hf", tmp_path / "out", Options(pad_ffn=64))
    widths = [layer.intermediate_size for layer in resolve(str(tmp_path / "out")).shape.layers]
    assert widths == [512, 512, 128]
    assert made.parity is not None and made.parity.greedy.equal == 72
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
