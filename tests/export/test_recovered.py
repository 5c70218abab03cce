"""A recovered model goes through every target's gate like any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from prunekit.checkpoint.rebuild import rebuild
from prunekit.export.export import export
from prunekit.export.registry import TARGET_NAMES, target
from prunekit.export.target import Options
from prunekit.models.source import Source, resolve
from prunekit.pipeline import recover
from prunekit.plan import LayerKeep, Plan
from tests.support.command import write_text
from tests.support.export_models import byte_tokenizer, dense_config
from tests.support.recovering import SETTINGS
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("single_threaded")
# They trace a graph of their own as onnx does, for ten seconds each: `make test-whole` has them.
SLOW = {"openvino", "tensorrt"}


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two layers of other widths each, trained for a few steps."""
    place = tmp_path_factory.mktemp("recovered")
    tiny_model("llama", config=dense_config("llama", num_hidden_layers=2)).save_pretrained(place / "dense")
    byte_tokenizer().save_pretrained(place / "dense")
    dense = resolve(str(place / "dense"))
    kept = (
        LayerKeep(0, (0, 1, 2, 3), tuple(range(8)), tuple(range(101))),
        LayerKeep(1, (1, 3), (2, 3, 6, 7), tuple(range(77))),
    )
    rebuild(dense, Plan(dense.shape, kept), place / "small")
    made = recover(
        str(place / "small"),
        dense,
        place / "out",
        text=str(write_text(place / "text.txt", 12_000)),
        tokens=64 * 8,
        device="cpu",
        settings={**SETTINGS, "learning_rate": 1e-4},
    )
    assert made.after < made.before
    return resolve(str(place / "out"))


@pytest.mark.parametrize("name", TARGET_NAMES)
def test_gate(name: str, recovered: Source, tmp_path: Path) -> None:
    wanted = target(name)
    missing = wanted.missing(wanted.writes_with)
    if missing:
        pytest.skip(f"{', '.join(each.package for each in missing)} is not installed")
    if name in SLOW and not os.environ.get("PRUNEKIT_WHOLE_MODELS"):
        pytest.skip("make test-whole takes the time")
    made = export(recovered, name, tmp_path / "out", Options())
    if made.parity is None:
        # Its own runtime is not there, so its check in another one counts.
        assert made.unverified
        (checked,) = (fact for fact in made.written.facts.values() if isinstance(fact, dict) and "ok" in fact)
        assert checked["ok"] is True
    else:
        assert made.parity.ok and made.parity.greedy.wrong == 0
    assert json.loads((made.path / "prunekit-export.json").read_text())["source"]["name"] == "out"
